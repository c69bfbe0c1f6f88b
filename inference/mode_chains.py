"""NUTS in every mode, and how much of the posterior each of them holds.

Chains do not walk from one mode to another, so the part of their draws that lies in a mode says nothing of its mass.
Proposals do know: space is divided by which component of theirs is most likely at a point, chains run in every part,
and the mass of a part is found by bridge sampling between its draws and the proposals, which is precise where the
importance weights alone are not.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

from inference.density import Density
from inference.errors import InputError
from inference.evidence import solve_bridge
from inference.gaussian import Family
from inference.importance import LIGHT, Proposals, proposal_at
from inference.label_copies import nearest_modes
from inference.warm_start import gaussian_of, sample_from

# NUTS from a fit, in whitened coordinates, has scales and correlations already, roughly.
WARMUP = 500
# A mode's chains are so much longer than its mass by the weights asks for, and no shorter than this part of a run:
# weights that did not suffice may be wrong about masses.
SPARE, LEAST = 1.3, 0.2
# Of a mode: fewer say nothing of it. Where that is all that chains leave of it, it is none for them.
MIN_DRAWS = 32


@dataclass(frozen=True, eq=False)
class ModeChains:
    """Draws of chains in every mode, put together.

    Attributes
    ----------
    points
        (chain, draw, D).
    stats
        As those of `inference.NUTS`, (chain, draw).
    masses, mass_se
        Part of the posterior in each mode and its standard error; a single mode has mass one.
    log_evidence, log_evidence_se
        By bridge sampling, in nats; minus infinity and infinity where it does not converge.
    """

    points: np.ndarray
    stats: dict[str, np.ndarray]
    masses: np.ndarray
    mass_se: np.ndarray
    log_evidence: float
    log_evidence_se: float


def sample_modes(
    density: Density,
    components: Sequence[Family],
    proposals: Proposals,
    *,
    num_samples: int,
    num_chains: int,
    seed: int,
    progress: bool = False,
) -> ModeChains:
    """Run chains in every mode that proposals have found, and weigh them.

    Parameters
    ----------
    density
        The log density.
    components
        What the proposals were made of, one distribution for each mode.
    proposals
        Weighted draws, from which chains start and take their whitening.
    num_samples, num_chains, seed, progress
        As for `inference.NUTS`.
    """
    rng = np.random.default_rng(seed)
    usable = np.isfinite(proposals.weights).all()
    by_weight = np.bincount(proposals.mode, proposals.weights, len(components)) if usable else np.ones(1)
    modes = np.flatnonzero(by_weight > LIGHT)
    alone = len(modes) == 1
    runs = []
    for mode in modes:
        inside = np.flatnonzero(alone | (proposals.mode == mode))
        starts = proposals.points[_resampled(inside, proposals.weights, rng) if usable else inside]
        around = gaussian_of(starts)
        share = np.clip(SPARE * by_weight[mode], LEAST, 1.0)
        enough = max(int(np.ceil(share * num_samples)), 2 * MIN_DRAWS)  # however few draws are asked for
        run = sample_from(
            density,
            around.loc,
            around.scale,
            starts,
            num_warmup=WARMUP,
            num_samples=num_samples if alone else enough,
            num_chains=num_chains,
            seed=seed + int(mode),
            progress=progress,
        )
        runs.append(run)
    points, stats = _side_by_side(runs)
    # Chains may go over to other labels of exchangeable components, of which the proposals have one.
    flat, _, log_copies = nearest_modes(density, components, points.reshape(-1, density.dim))
    log_weight = np.where(nearest_modes(density, components, proposals.points)[1], -np.inf, proposals.log_weight)
    log_proposal, nearest = proposal_at(components, proposals.shares, flat)
    log_ratio, nearest = (
        (stats["lp"].ravel() - log_proposal).reshape(points.shape[:2]),
        nearest.reshape(points.shape[:2]),
    )
    if alone:
        log_evidence, se = _bridged(log_ratio, log_weight)
        return ModeChains(points, stats, np.ones(1), np.zeros(1), log_evidence + log_copies, se)
    visits = np.bincount(nearest.ravel(), minlength=len(components))[modes]
    modes = modes[visits >= min(MIN_DRAWS, visits.max())]
    parts = [
        _bridged(log_ratio[nearest == mode][None], np.where(proposals.mode == mode, log_weight, -np.inf))
        for mode in modes
    ]
    masses, mass_se, log_evidence, se = _masses(parts, by_weight[modes])
    chosen = _chosen(nearest, modes, masses, num_samples, rng)
    flat = {name: value.reshape(-1, *value.shape[2:])[chosen] for name, value in (stats | {"": points}).items()}
    return ModeChains(flat.pop(""), flat, masses, mass_se, log_evidence + log_copies, se)


def _resampled(inside: np.ndarray, weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Choose proposals of one mode by their weights."""
    return rng.choice(inside, size=len(inside), p=weights[inside] / weights[inside].sum())


def _side_by_side(runs: Sequence[tuple[np.ndarray, dict[str, np.ndarray]]]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Put the draws of the first chains of all runs after one another, those of the second chains, and so on."""
    num = min(len(points) for points, _ in runs)  # fewer chains than were asked for, if a run was interrupted
    points = np.concatenate([points[:num] for points, _ in runs], axis=1)
    return points, {name: np.concatenate([stats[name][:num] for _, stats in runs], axis=1) for name in runs[0][1]}


def _bridged(log_ratio: np.ndarray, at_proposals: np.ndarray) -> tuple[float, float]:
    """Log mass and its standard error by draws (chain, draw) and proposals; infinite where there is no telling."""
    if not np.isfinite(log_ratio).all() or np.isfinite(at_proposals).sum() < MIN_DRAWS:
        return -np.inf, np.inf
    try:
        return solve_bridge(log_ratio, at_proposals)[:2]
    except InputError:  # chains and proposals hardly overlap
        return -np.inf, np.inf


def _masses(parts: Sequence[tuple[float, float]], by_weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Shares of modes and of their errors, from log masses and theirs; log evidence and its error."""
    logs, errors = np.array(parts).T
    if not np.isfinite(errors).all():
        return by_weight / by_weight.sum(), np.full(len(parts), np.inf), -np.inf, np.inf
    log_evidence = float(logsumexp(logs))
    masses = np.exp(logs - log_evidence)
    # By the delta method, where errors are independent: share^2 (se^2 (1 - 2 share) + the sum of all share^2 se^2).
    total = (masses**2 * errors**2).sum()
    return masses, masses * np.sqrt(errors**2 * (1 - 2 * masses) + total), log_evidence, float(np.sqrt(total))


def _chosen(
    nearest: np.ndarray, modes: np.ndarray, masses: np.ndarray, num_samples: int, rng: np.random.Generator
) -> np.ndarray:
    """Give every chain as many draws of each mode as its mass asks for, at random places but in their own order.

    Parameters
    ----------
    nearest
        Mode of each draw, (chain, draw).

    Returns
    -------
    chosen : ndarray
        Indices (chain, num_samples) into the flattened draws.
    """
    counts = np.diff(np.round(np.concatenate([[0.0], np.cumsum(masses)]) * num_samples).astype(int))
    chosen = np.empty((len(nearest), num_samples), int)
    # Not each chain's own draws: one that has left its mode would have next to none.
    inside = [np.array_split(np.flatnonzero(nearest.ravel() == mode), len(nearest)) for mode in modes]
    for chain, row in enumerate(chosen):
        owner = rng.permutation(np.repeat(np.arange(len(modes)), counts))
        for i, count in enumerate(counts):
            own = inside[i][chain]
            row[owner == i] = own[np.linspace(0, len(own) - 1, count).round().astype(int)]
    return chosen
