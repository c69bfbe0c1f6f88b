"""Linear-Gaussian state space: evidence as a distribution over series, filtering, smoothing and forecasts by Kalman."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from pyro.distributions import GaussianHMM, Normal, TorchDistribution, constraints


class LinearGaussian(TorchDistribution):
    """A series of numbers that see a hidden vector through noise, the vector moving linearly with noise of its own.

    ``state[t] = matrix @ state[t - 1] + step_scale * noise``, ``value[t] = weights @ state[t] + noise_scale * noise``.
    The hidden path is integrated out exactly, by a product of Gaussian potentials over time (Sarkka & Garcia-Fernandez
    2021, IEEE Trans. Automat. Contr. 66), which gives the Kalman filter's evidence in O(T) work and a small graph.
    A NaN is missing: the state moves on.

    Parameters
    ----------
    loc, scale
        Mean and sds of the state before the first step, (*batch, n).
    matrix
        (*batch, n, n).
    step_scale
        Sds of a step's noise, (*batch, n), all positive.
    weights
        (*batch, n).
    noise_scale
        (*batch,).
    num_steps
        Length T of the series.
    """

    arg_constraints = {}

    def __init__(
        self,
        loc: torch.Tensor,
        scale: torch.Tensor,
        matrix: torch.Tensor,
        step_scale: torch.Tensor,
        weights: torch.Tensor,
        noise_scale: torch.Tensor,
        num_steps: int,
        *,
        validate_args: bool | None = None,
    ) -> None:
        if num_steps < 1:
            raise ValueError(f"num_steps: expected a series of at least one step, got {num_steps}.")
        n = loc.shape[-1]
        if matrix.shape[-2:] != (n, n) or weights.shape[-1] != n or step_scale.shape[-1] != n:
            raise ValueError(
                f"matrix: expected sizes ({n}, {n}) with weights and step_scale of {n} for a state of {n} numbers, got "
                f"{tuple(matrix.shape[-2:])}, {weights.shape[-1]} and {step_scale.shape[-1]}."
            )
        self.loc, self.scale, self.matrix, self.step_scale = loc, scale, matrix, step_scale
        self.weights, self.noise_scale, self.num_steps = weights, noise_scale, num_steps
        vectors = (loc, scale, matrix[..., 0], step_scale, weights)
        batch = torch.broadcast_shapes(*(v.shape[:-1] for v in vectors), noise_scale.shape)
        super().__init__(batch, torch.Size([num_steps]), validate_args=validate_args)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        """Any numbers, or NaN."""
        return _NumbersOrMissing()

    def expand(self, batch_shape: torch.Size, _instance: "LinearGaussian | None" = None) -> "LinearGaussian":
        """Repeat the distribution to a larger batch shape; the parameters broadcast."""
        new = self._get_checked_instance(LinearGaussian, _instance)
        for name in ("loc", "scale", "matrix", "step_scale", "weights", "noise_scale", "num_steps"):
            setattr(new, name, getattr(self, name))
        TorchDistribution.__init__(new, torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self.__dict__.get("_validate_args")
        return new

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Log density of series (*batch, T), shape (*batch,): the evidence of the hidden path."""
        if self._validate_args:
            if value.shape[-1:] != self.event_shape:
                raise ValueError(f"value: expected series of {self.num_steps} steps, got shape {tuple(value.shape)}.")
            self._validate_sample(value)
        seen = ~value.isnan()
        # A missing value sees nothing of the state: it is noise around zero, whose density is taken off again.
        weights = torch.where(seen.unsqueeze(-1), self.weights.unsqueeze(-2), 0.0)
        zero = torch.zeros((), dtype=value.dtype)
        noise_scale = self.noise_scale.unsqueeze(-1)
        # Counted from what was expected beforehand, numbers are small and differences of squares lose few digits.
        value = torch.where(seen, value - (self._expected_states() * self.weights.unsqueeze(-2)).sum(-1), zero)
        chain = GaussianHMM(
            Normal(zero, self.scale.expand(self.loc.shape)).to_event(1),
            self.matrix.mT.unsqueeze(-3),
            Normal(zero, self.step_scale.unsqueeze(-2)).to_event(1),
            weights.unsqueeze(-1),
            Normal(zero, noise_scale.unsqueeze(-1)).to_event(1),
            duration=self.num_steps,
        )
        surplus = torch.where(seen, zero, Normal(zero, noise_scale).log_prob(zero)).sum(-1)
        return chain.log_prob(value.unsqueeze(-1)) - surplus

    def _expected_states(self) -> torch.Tensor:
        """Give the prior means of all states, (*batch, T, n), twice as many at each pass."""
        power, means = self.matrix, (self.matrix @ self.loc.unsqueeze(-1)).mT
        while means.shape[-2] < self.num_steps:
            means = torch.cat([means, means @ power.mT], -2)
            power = power @ power
        return means[..., : self.num_steps, :]

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size = torch.Size()) -> torch.Tensor:  # noqa: B008
        """Draw series, shape ``sample_shape + batch_shape + (T,)``."""
        shape = torch.Size(sample_shape) + self.batch_shape
        n = self.loc.shape[-1]
        state = self.loc + self.scale * torch.randn(*shape, n, dtype=self.loc.dtype)
        values = []
        for _ in range(self.num_steps):
            moved = (self.matrix @ state.unsqueeze(-1)).squeeze(-1)
            state = moved + self.step_scale * torch.randn(*shape, n, dtype=self.loc.dtype)
            seen = (self.weights * state).sum(-1)
            values.append(seen + self.noise_scale * torch.randn(shape, dtype=self.loc.dtype))
        return torch.stack(values, -1)


class _NumbersOrMissing(constraints.Constraint):
    event_dim = 1

    def check(self, value: torch.Tensor) -> torch.Tensor:
        return (~value.isinf()).all(-1)


@dataclass(frozen=True)
class Smoothed:
    """What a series says about the hidden states.

    Attributes
    ----------
    mean, covariance
        Of each state given the whole series: (T, n), (T, n, n).
    last_mean, last_covariance
        Of the last state, (n,), (n, n): where forecasts start.
    log_evidence
        Log density of the series.
    """

    mean: np.ndarray
    covariance: np.ndarray
    last_mean: np.ndarray
    last_covariance: np.ndarray
    log_evidence: float


def smooth(model: LinearGaussian, series: np.ndarray) -> Smoothed:
    """Run the Kalman filter and the Rauch-Tung-Striebel smoother (Sarkka 2013, theorems 4.2 and 8.2).

    Parameters
    ----------
    model
        Without batch.
    series
        (T,), NaN where missing.
    """
    F, Q, h, r, m, P = _arrays(model)
    series = np.asarray(series, dtype=np.float64)
    predicted, filtered, log_evidence = [], [], 0.0
    for value in series:
        m, P = F @ m, F @ P @ F.T + Q
        predicted.append((m, P))
        if not np.isnan(value):
            variance = h @ P @ h + r
            gain, error = P @ h / variance, value - h @ m
            log_evidence -= 0.5 * (math.log(2 * math.pi * variance) + error**2 / variance)
            # Joseph's form keeps the covariance positive.
            shrink = np.eye(len(m)) - np.outer(gain, h)
            m, P = m + gain * error, shrink @ P @ shrink.T + r * np.outer(gain, gain)
        filtered.append((m, P))
    means, covariances = [m], [P]
    for t in range(len(series) - 2, -1, -1):
        (m, P), (ahead, ahead_P) = filtered[t], predicted[t + 1]
        gain = np.linalg.solve(ahead_P, F @ P).T
        means.append(m + gain @ (means[-1] - ahead))
        covariances.append(P + gain @ (covariances[-1] - ahead_P) @ gain.T)
    return Smoothed(np.array(means[::-1]), np.array(covariances[::-1]), *filtered[-1], log_evidence)


def forecast_series(model: LinearGaussian, series: np.ndarray, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Give mean and sd of each of the next ``num_steps`` values, (num_steps,) each, given a series (T,).

    Raises
    ------
    ValueError
        ``num_steps`` is below 1.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps: expected at least one step to forecast, got {num_steps}.")
    F, Q, h, r, *_ = _arrays(model)
    known = smooth(model, series)
    m, P = known.last_mean, known.last_covariance
    means, variances = [], []
    for _ in range(num_steps):
        m, P = F @ m, F @ P @ F.T + Q
        means.append(h @ m)
        variances.append(h @ P @ h + r)
    return np.array(means), np.sqrt(variances)


def _arrays(model: LinearGaussian) -> tuple[np.ndarray, ...]:
    """Give transition, its noise, weights, noise variance, and mean and covariance before the first step."""
    if model.batch_shape:
        raise ValueError(f"model: expected one, without batch, got batch shape {tuple(model.batch_shape)}.")
    loc, scale, matrix, step, weights, noise = (
        tensor.detach().double().numpy()
        for tensor in (model.loc, model.scale, model.matrix, model.step_scale, model.weights, model.noise_scale)
    )
    n = len(loc)
    diagonals = (np.diag(np.broadcast_to(sd, n) ** 2.0) for sd in (step, scale))
    Q, P = diagonals
    return matrix, Q, weights, float(noise) ** 2, loc, P
