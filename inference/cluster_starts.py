"""Starts for climbs in mixtures and hidden Markov models, from a clustering of the rows that they observe.

From random parameters most climbs of a mixture end in a poor mode: two components share one cluster, one covers two,
and in more than a few columns the best mode may never be met. So rows are clustered first, by k-means, and the start is
where the density given those labels is highest: one M-step of the EM algorithm with hard assignments (Celeux & Govaert
1992). That needs no knowledge of the model but which of its sites are labels: a discrete latent site summed out in a
plate with observations, the states of an observed hidden Markov chain, or the components of an observed
``MixtureSameFamily``.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from scipy.cluster.vq import kmeans2, vq
from scipy.optimize import minimize

from inference.chain_sites import chain_logits
from inference.density import Density
from inference.enumerated import factors, is_separate
from inference.sites import Site, Sites, trace_at_start
from inference.unconstrain import UnconstrainMessenger

# Steps of k-means and of L-BFGS: a start need not be exact.
CLUSTER_STEPS, STEPS = 20, 40
# Rows that k-means is run on; the others go to the nearest centre.
MAX_ROWS = 20_000
# Of so many clusterings the tightest begins a climb: more of them would all be the same, and so would be the climbs.
CLUSTERINGS = 3
# Axes of the data with less than this share of the largest variance are rounding, when rows are whitened.
FLAT = 1e-9


@dataclass(frozen=True, eq=False)
class Labels:
    """What of a model is a label, and how the density reads once labels are given.

    Attributes
    ----------
    size
        Number K of values of a label.
    shape
        Shape of the labels: plates of an assignment, (*batch, T) of state paths.
    rows
        What is observed beside each label, flattened: (prod(shape), columns), NaN where missing.
    seen
        Which rows say anything (prod(shape),); those after the end of a shorter sequence do not.
    joint
        ``(density, vector (D,), labels (*shape)) -> log density`` of labels, data and unconstrained latent sites.
    """

    size: int
    shape: tuple[int, ...]
    rows: np.ndarray
    seen: np.ndarray
    joint: Callable[[Density, torch.Tensor, torch.Tensor], torch.Tensor]


_FOUND: WeakKeyDictionary[Density, Labels | None] = WeakKeyDictionary()


def proposed_starts(density: Density, num: int, *, generator: np.random.Generator) -> np.ndarray:
    """Give ``num`` points (num, D) that the model proposes, else of clusterings, or none (0, D) where it has no labels.

    To be called where the density may be evaluated.
    """
    found = density.proposed(num, generator=generator)
    labels = None if len(found) or num == 0 else labels_of(density)
    if labels is None:
        return found
    points, start = [], density.starts(1, generator=generator)[0]
    for i in range(num):
        clustering = clustered(labels, whitened=i % 2 == 1, generator=generator)
        start = suited(density, labels, clustering, start)
        points.append(start)
    points = np.array(points)
    values, gradients = density.grad(points)
    return points[np.isfinite(values) & np.isfinite(gradients).all(axis=1)]


def labels_of(density: Density) -> Labels | None:
    """Find the labels of a model; None where it has none, or several kinds of them. Kept for the density."""
    if density not in _FOUND:
        with torch.no_grad(), pyro.validation_enabled(False):
            _FOUND[density] = _labels(density)
    return _FOUND[density]


def clustered(labels: Labels, *, whitened: bool, generator: np.random.Generator) -> np.ndarray:
    """Cluster the rows by k-means from random seeds far apart (Arthur & Vassilvitskii 2007); labels (*shape).

    Columns of numbers are standardised, or ``whitened``, which finds clusters that are long and narrow. Clusters are in
    the order of their means, so that they suit locations in increasing order.
    """
    rows = _standardised(labels.rows, whitened=whitened)[labels.seen]
    tries = [_kmeans(rows, labels.size, generator) for _ in range(CLUSTERINGS)]
    _, centres, number = min(tries, key=lambda found: found[0])
    rank = np.argsort(np.argsort(centres.sum(axis=1)))
    result = np.zeros(len(labels.rows), dtype=np.int64)
    result[labels.seen] = rank[number]
    return result.reshape(labels.shape)


def _kmeans(rows: np.ndarray, K: int, generator: np.random.Generator) -> tuple[float, np.ndarray, np.ndarray]:
    """Sum of squares, centres (K, columns) and labels (rows,)."""
    some = generator.choice(rows, MAX_ROWS, replace=False) if len(rows) > MAX_ROWS else rows
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of empty clusters
        centres, _ = kmeans2(some, K, iter=CLUSTER_STEPS, minit="++", rng=generator)
    number, _ = vq(rows, centres)
    return float(((rows - centres[number]) ** 2).sum()), centres, number


def _standardised(rows: np.ndarray, *, whitened: bool) -> np.ndarray:
    """Give rows (rows, columns) in which distances mean something; missing entries lie at the mean of their column.

    Switches and counts have one unit, in which their roots vary about equally: in units of its own spread a note that
    is hardly ever played would weigh more than all others.
    """
    counts = bool(np.all(np.isnan(rows) | ((rows >= 0) & (rows == np.floor(rows)))))
    rows = np.sqrt(rows) if counts else rows
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of columns without a value
        mean = np.nan_to_num(np.nanmean(rows, axis=0))
    centred = np.where(np.isnan(rows), 0.0, rows - mean)
    spread = centred.std(axis=0)
    if counts or not (spread > 0).any():
        return centred
    white = centred[:, spread > 0] / spread[spread > 0]
    if whitened and len(white) > white.shape[1] > 1:
        sizes, axes = np.linalg.eigh(np.cov(white.T))
        kept = sizes > FLAT * sizes[-1]
        white = white @ (axes[:, kept] / np.sqrt(sizes[kept]))
    return white


def suited(density: Density, labels: Labels, given: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Climb from a point (D,) to where the density is high given the labels (*shape)."""
    given = torch.as_tensor(given)

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        leaf = torch.as_tensor(x, dtype=density.dtype).clone().requires_grad_()
        try:
            with torch.enable_grad(), pyro.validation_enabled(False):
                value = labels.joint(density, leaf, given)
                (gradient,) = torch.autograd.grad(value, leaf)
        except (ValueError, RuntimeError):  # a matrix that cannot be factorised, say
            return 1e30, np.zeros_like(x)
        gradient = gradient.numpy().astype(np.float64)
        if not (np.isfinite(value.item()) and np.isfinite(gradient).all()):
            return 1e30, np.zeros_like(x)
        return -value.item(), -gradient

    return minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": STEPS}).x


def _labels(density: Density) -> Labels | None:
    sites = density.sites
    chains = list(sites.chains)
    if len(sites.discrete) == 1 and not chains:
        return _assignment(sites, next(iter(sites.discrete.values())))
    if sites.discrete:
        return None
    trace = trace_at_start(sites.function, sites.data)
    if len(chains) == 1:
        return _chain(sites, chains[0], trace)
    mixed = [name for name in sites.observed if _mixture(trace.nodes[name]["fn"]) is not None]
    return _mixed(sites, mixed[0], trace) if len(mixed) == 1 and not chains else None


def _joint(
    density: Density, vector: torch.Tensor, condition: dict[str, torch.Tensor], without: str = ""
) -> tuple[torch.Tensor, poutine.Trace]:
    """Log density at an unconstrained vector (D,), labels given, but for one observed site; and the trace."""
    with UnconstrainMessenger(density.unflatten(vector)) as run:
        model = poutine.condition(density.sites.function, data=condition)
        trace = poutine.trace(model).get_trace(**density.sites.data)
    total = trace.log_prob_sum(lambda name, _: name != without)
    return total + (run.log_jacobian if density.jacobian else 0.0), trace


def _assignment(sites: Sites, site: Site) -> Labels | None:
    """Labels that are values of a discrete site, independent over its plates."""
    if not site.plates or site.shape != tuple(sites.plate_sizes[p] for p in site.dims if p in site.plates):
        return None
    start = trace_at_start(sites.function, sites.data)
    probe = factors(sites, {name: start.nodes[name]["value"] for name in sites.latent})
    (group,) = (group for group in probe.groups if site.name in group)
    columns = [_rows(sites.observed[name], sites.observations[name], site) for name in probe.observed(group)]
    columns = [column for column in columns if column is not None]
    support = probe.support(site.name)
    if not is_separate(probe, group) or not columns or support.dim() != 1:
        return None

    def joint(density: Density, vector: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return _joint(density, vector, {site.name: support[labels]})[0]

    rows = np.concatenate(columns, axis=1)
    return Labels(len(support), site.shape, rows, np.ones(len(rows), bool), joint)


def _rows(observed: Site, value: torch.Tensor, site: Site) -> np.ndarray | None:
    """Values of an observed site, one row for each element of the plates of another."""
    plates = [dim for dim in site.dims if dim in site.plates]
    if not set(plates) <= set(observed.dims):
        return None
    table = np.moveaxis(np.asarray(value, np.float64), [observed.dims.index(p) for p in plates], range(len(plates)))
    return table.reshape(int(np.prod(site.shape)), -1)


def _chain(sites: Sites, name: str, trace: poutine.Trace) -> Labels:
    """Labels that are the states of a hidden Markov chain."""
    node = trace.nodes[name]
    observation = chain_logits(node)["observation"]
    seen = (observation != 0).any(-1)
    shape = sites.chains[name].shape
    rows = np.asarray(node["value"], np.float64).reshape(int(np.prod(shape)), -1)

    def joint(density: Density, vector: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        total, trace = _joint(density, vector, {}, name)
        parts = chain_logits(trace.nodes[name])
        return total + _path_logit(parts, labels, seen.to(total.dtype))

    return Labels(observation.shape[-1], shape, rows, seen.numpy().reshape(-1), joint)


def _path_logit(parts: dict[str, torch.Tensor], path: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Log weight of state paths (*batch, T), all batches in sum; moves to steps that are not seen do not count."""
    initial, transition, observation = (parts[name] for name in ("initial", "transition", "observation"))
    total = observation.gather(-1, path.unsqueeze(-1)).sum()
    total = total + (initial.expand(*path.shape[:-1], -1).gather(-1, path[..., :1]).squeeze(-1) * seen[..., 0]).sum()
    K, moves = observation.shape[-1], path.shape[-1] - 1
    if transition.shape[-3] == 1 and transition.numel() == K * K:
        pair = (path[..., :-1] * K + path[..., 1:]).reshape(-1)
        counts = torch.zeros(K * K, dtype=seen.dtype).index_add(0, pair, seen[..., 1:].reshape(-1))
        return total + (counts * transition.reshape(-1)).nan_to_num(0.0).sum()
    rows = transition.expand(*path.shape[:-1], moves, K, K)
    rows = rows.gather(-2, path[..., :-1, None, None].expand(*path.shape[:-1], moves, 1, K)).squeeze(-2)
    return total + (rows.gather(-1, path[..., 1:, None]).squeeze(-1) * seen[..., 1:]).sum()


def _mixture(distribution: object) -> dist.MixtureSameFamily | None:
    while isinstance(distribution, dist.ExpandedDistribution | dist.MaskedDistribution):
        distribution = distribution.base_dist
    return distribution if isinstance(distribution, dist.MixtureSameFamily) else None


def _mixed(sites: Sites, name: str, trace: poutine.Trace) -> Labels | None:
    """Labels that are the components of an observed mixture distribution."""
    fn = _mixture(trace.nodes[name]["fn"])
    event_dim = len(fn.event_shape)
    shape = sites.observed[name].shape[: len(sites.observed[name].shape) - event_dim]
    rows = np.asarray(trace.nodes[name]["value"], np.float64).reshape(int(np.prod(shape)), -1)

    def weights(node: dict) -> torch.Tensor:
        mixture = _mixture(node["fn"])
        each = mixture.component_distribution.log_prob(node["value"].unsqueeze(-1 - event_dim))
        return (each + mixture.mixture_distribution.logits).expand(*shape, -1)

    def joint(density: Density, vector: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        total, trace = _joint(density, vector, {}, name)
        return total + weights(trace.nodes[name]).gather(-1, labels.unsqueeze(-1)).sum()

    if not shape or int(np.prod(shape)) < 2:
        return None
    return Labels(weights(trace.nodes[name]).shape[-1], shape, rows, np.ones(len(rows), bool), joint)
