"""Averages over draws that arrive in parts, with their Monte Carlo errors.

The error of an average over a Markov chain is taken from the averages of batches of about the square root of the
chain's length (Flegal and Jones 2010), which are nearly independent. Independent draws are batches of one.
"""

from collections.abc import Iterator

import numpy as np

# Batches of log densities are all kept until their largest is known; 50 give an error to 10 %.
MAX_LOG_BATCHES = 50


def batch_ids(num_chains: int, num_draws: int, *, independent: bool, most: int | None = None) -> np.ndarray:
    """Give the batch of every draw, (num_chains * num_draws,): chain after chain, of equal length."""
    per_chain = num_draws if independent else max(1, int(np.sqrt(num_draws)))
    if most is not None:
        per_chain = max(1, min(per_chain, most // num_chains))
    within = np.arange(num_draws) * per_chain // num_draws
    return (np.arange(num_chains)[:, None] * per_chain + within).reshape(-1)


class BatchMeans:
    """Mean and Monte Carlo standard error of arrays, one per draw, given in order and some at a time."""

    def __init__(self, ids: np.ndarray) -> None:
        self._ids, self._seen = ids, 0
        # Deviations from the first draw are summed: squares of the values themselves would lose a small variance.
        self._first: np.ndarray | None = None
        self._sum: np.ndarray | float = 0.0
        self._batch: np.ndarray | float = 0.0
        self._in_batch = 0
        self._means: np.ndarray | float = 0.0
        self._squares: np.ndarray | float = 0.0

    def add(self, values: np.ndarray) -> None:
        """Add the next draws, (n, *shape)."""
        if self._first is None:
            self._first = np.array(values[0])
        for _, part in _segments(self._ids, self._seen, values - self._first):
            self._batch = self._batch + part.sum(0)
            self._in_batch += len(part)
            self._seen += len(part)
            if self._seen == len(self._ids) or self._ids[self._seen] != self._ids[self._seen - 1]:
                mean = self._batch / self._in_batch
                self._sum = self._sum + self._batch
                self._means, self._squares = self._means + mean, self._squares + mean**2
                self._batch, self._in_batch = 0.0, 0

    @property
    def mean(self) -> np.ndarray:
        """Mean over all draws."""
        return np.asarray(self._first + self._sum / len(self._ids))

    @property
    def error(self) -> np.ndarray:
        """Monte Carlo standard error of the mean; NaN where one batch is all there is."""
        num = int(self._ids[-1]) + 1
        if num < 2:
            return np.full(np.shape(self._sum), np.nan)
        variance = (self._squares - np.square(self._means) / num) / (num - 1)
        return np.asarray(np.sqrt(np.maximum(variance, 0.0) / num))


class LogBatchMeans:
    """Logarithm of the mean of densities, one array of logs per draw, given in order and some at a time."""

    def __init__(self, ids: np.ndarray) -> None:
        self._ids, self._seen = ids, 0
        self._logs: dict[int, np.ndarray] = {}

    def add(self, values: np.ndarray) -> None:
        """Add the logs of the next draws, (n, *shape)."""
        for batch, part in _segments(self._ids, self._seen, values):
            log = np.logaddexp.reduce(part, axis=0)
            self._logs[batch] = np.logaddexp(self._logs[batch], log) if batch in self._logs else log
            self._seen += len(part)

    def result(self) -> tuple[np.ndarray, np.ndarray, float]:
        """Log mean (*shape), its Monte Carlo standard error (*shape), and that of its sum over all elements."""
        counts = np.bincount(self._ids)
        batches = np.stack([self._logs[i] - np.log(counts[i]) for i in range(len(counts))])
        log_mean = np.logaddexp.reduce(batches + np.log(counts / len(self._ids)).reshape(-1, *[1] * (batches.ndim - 1)))
        if len(counts) < 2:
            return log_mean, np.full(log_mean.shape, np.nan), np.nan
        with np.errstate(invalid="ignore"):  # impossible under every draw: no error either
            relative = np.nan_to_num(np.exp(batches - log_mean), nan=1.0)
        error = relative.std(0, ddof=1) / np.sqrt(len(counts))
        # Elements share their draws, so the error of the sum is that of the sum of the relative means (delta method).
        total = relative.reshape(len(counts), -1).sum(1).std(ddof=1) / np.sqrt(len(counts))
        return log_mean, error, float(total)


def _segments(ids: np.ndarray, begin: int, values: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Split draws that start at ``begin`` into parts of one batch each."""
    own = ids[begin : begin + len(values)]
    edges = [0, *(np.flatnonzero(np.diff(own)) + 1), len(own)]
    for first, last in zip(edges[:-1], edges[1:], strict=True):
        if last > first:
            yield int(own[first]), values[first:last]
