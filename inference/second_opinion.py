"""Second opinion on a variational fit: short Markov chains from its draws, where importance weights do not suffice."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from inference import limits
from inference.agreement import UNCLEAR, Errors, Reference, errors_between, judge_agreement
from inference.conditional import complete
from inference.density import Density
from inference.diagnostics import Moments, Weights, moments, tail_index, weighted_moments
from inference.errors import InputError
from inference.fit import Fit
from inference.quantities import Quantities, quantities
from inference.restored_density import restored_density
from inference.short_chains import (
    NUM_ADAPT,
    NUM_CHAINS,
    NUM_TRANSITIONS,
    Mobility,
    ShortChains,
    chain_moments,
    mobility,
    short_chains,
    whitening,
)
from inference.sites import Sites
from inference.verdict_kinds import Verdict, VerdictKind

CHAINS = Reference(
    name="short Markov chains from its draws",
    instead="Use NUTS",
    more="Draw about {factor:.1f} times as many samples (num_samples).",
)
# Runs after the first, each twice as long as the one before. With 8 transitions of adaptation, 8, and 16 more they
# spend some 50 000 gradients, about as many as NUTS does on an easy posterior: more of them is no check but a fit.
MAX_EXTENSIONS = 1
# Numbers that the states of all chains may take in the longest run (512 MB); in very many dimensions fewer chains run.
MAX_NUMBERS = 2**26
MIN_CHAINS = 100
# Gradients of a first run, by which it is decided whether native code pays.
TYPICAL_GRADIENTS = 3 * NUM_CHAINS * (NUM_ADAPT + NUM_TRANSITIONS)


@dataclass(frozen=True, eq=False)
class Opinion:
    """What short chains say of a fit.

    Attributes
    ----------
    labels
        The quantities that were looked at.
    raw
        Errors of the fit's draws against the chains.
    weighted
        Errors of its weighted moments, where it has usable weights.
    mobility
        Whether the chains have forgotten their starts.
    unreliable
        Why the chains prove nothing good; empty where they do.
    """

    labels: tuple[str, ...]
    raw: Errors
    weighted: Errors | None
    mobility: Mobility
    unreliable: str

    @property
    def numbers(self) -> dict[str, float]:
        """What goes into `Verdict.checks`: upper bounds on errors, and the chains' health."""
        numbers = {"taddaa_mean": _upper(self.raw.mean, self.raw.mean_se)}
        numbers["taddaa_log_sd"] = _upper(self.raw.log_sd, self.raw.log_sd_se)
        numbers["taddaa_quantile"] = _upper(self.raw.quantile, self.raw.quantile_se)
        numbers["taddaa_correlation"] = float(np.max(self.mobility.memory))
        numbers["taddaa_acceptance"] = self.mobility.acceptance
        numbers["taddaa_tail_acceptance"] = float(self.mobility.tail_acceptance.min())
        return {name: value for name, value in numbers.items() if np.isfinite(value)}

    @property
    def convicts(self) -> bool:
        """Whether draws moved so far that they are wrong, even if the chains are not at their end.

        Chains that leave the posterior invariant do not move right draws, however badly they mix.
        """
        low = np.abs(self.raw.size) - limits.Z_UNRELIABLE * self.raw.se
        mean, log_sd = np.nan_to_num(low[0], nan=-1.0), np.nan_to_num(low[1], nan=-1.0)
        return bool(mean.max() > limits.MEANS_ONLY_TOLERANCE or log_sd.max() > limits.LOG_SD_TOLERANCE)

    @property
    def clear(self) -> bool:
        """Whether longer chains would say nothing new."""
        known = [errors.states() for errors in (self.raw, self.weighted) if errors is not None]
        return not self.unreliable and not any(UNCLEAR in states for states in known)


def ask_chains(fit: Fit, found: Quantities, *, weights: Weights | None = None, resampled: bool = False) -> Opinion:
    """Run short chains from a fit's draws and compare their ends with its moments.

    Parameters
    ----------
    fit
        With a flat density and its unconstrained draws.
    found
        The quantities to look at.
    weights
        Smoothed importance weights, if weighted moments are to be judged as well.
    resampled
        Whether chains start from draws resampled by these weights instead of the raw ones.

    Raises
    ------
    InputError
        The fit has no flat density, was loaded without its model, or has too few draws.
    """
    with restored_density(fit, num_gradients=TYPICAL_GRADIENTS) as (density, sites):
        draws = fit.state["unconstrained"].reshape(-1, density.dim)
        chosen = _chosen(draws, weights if resampled else None)
        chains = short_chains(density.grad, draws[chosen], by=whitening(draws), seed=fit.seed)

        def look(chains: ShortChains) -> Opinion:
            ends = _quantities_at(fit, density, sites, chains.points)
            place = {label: i for i, label in enumerate(ends.labels)}
            ours = found.select(np.array([label in place for label in found.labels]))
            values = ends.draws[:, :, [place[label] for label in ours.labels]]
            if not ours.labels or not np.isfinite(values).all():
                raise InputError("fit: the Markov chains from its draws end where its quantities are not finite.")
            weighted = None if weights is None else weighted_moments(ours.pooled, weights.weights)
            return opine(
                ours.labels,
                ours.pooled[chosen],
                values,
                chains.acceptance,
                raw=raw_moments(fit, ours),
                weighted=weighted,
            )

        return until_clear(chains, look)


def until_clear(chains: ShortChains, look: Callable[[ShortChains], Opinion]) -> Opinion:
    """Run chains on, twice as long each time, until what they say is clear."""
    opinion = look(chains)
    for i in range(MAX_EXTENSIONS):
        if opinion.clear:
            break
        chains = chains.extend(NUM_TRANSITIONS * 2 ** (i + 1))
        opinion = look(chains)
    return opinion


def opine(
    labels: Sequence[str],
    starts: np.ndarray,
    ends: np.ndarray,
    acceptance: np.ndarray,
    *,
    raw: Moments,
    weighted: Moments | None = None,
) -> Opinion:
    """Compare moments with the ends of short chains.

    Parameters
    ----------
    labels
        Names of the quantities.
    starts, ends
        The quantities at the starts, (M, Q), and along the chains, (M, T, Q).
    acceptance
        (M, T).
    raw, weighted
        Moments of the draws and, where weights are usable, of the weighted draws.
    """
    moved = mobility(starts, ends, acceptance)
    # Of an error in the draws, the share that chains remember is still in their averages: e' = (1 - memory) e.
    seen = 1.0 - np.clip(moved.memory, 0.0, limits.CHAIN_MEMORY)
    reference, tails = chain_moments(ends), tail_index(ends)
    errors = [
        None if given is None else _in_full(errors_between(given, reference, tail_index=tails), seen)
        for given in (raw, weighted)
    ]
    return Opinion(tuple(labels), *errors, moved, why_unreliable(labels, moved))


def judge_opinion(opinion: Opinion, weights: Weights | None, numbers: str) -> Verdict:
    """Verdict by short chains; ``numbers`` is the clause that says why the weights did not suffice."""
    if opinion.unreliable and opinion.convicts:
        judged = judge_agreement(opinion.labels, opinion.raw, against=CHAINS)
        reason = f"{numbers}; {judged.reason} This is a lower bound: {opinion.unreliable}."
        return Verdict(VerdictKind.DO_NOT_TRUST, reason, judged.worst, f"{CHAINS.instead}.", opinion.numbers)
    if opinion.unreliable:
        reason = f"{numbers}, and short Markov chains from the draws cannot decide: {opinion.unreliable}."
        next_step = "Compare it with NUTS: compare({'nuts': ..., 'vi': ...})."
        return Verdict(VerdictKind.CANNOT_TELL, reason, next_step=next_step, checks=opinion.numbers)
    weighted = {"weighted": opinion.weighted, "weights": weights} if opinion.weighted is not None else {}
    judged = judge_agreement(opinion.labels, opinion.raw, against=CHAINS, **weighted)
    return replace(judged, reason=f"{numbers}, so short Markov chains decide. {judged.reason}", checks=opinion.numbers)


def _upper(size: np.ndarray, se: np.ndarray) -> float:
    upper = np.abs(size) + limits.Z * se
    return float(np.nanmax(upper)) if np.isfinite(upper).any() else float("nan")


def _chosen(draws: np.ndarray, weights: Weights | None) -> np.ndarray:
    """Choose starts: spread evenly over the draws, or over their cumulative weights (systematic resampling)."""
    longest = NUM_TRANSITIONS * 2**MAX_EXTENSIONS
    num = min(NUM_CHAINS, len(draws), max(MIN_CHAINS, MAX_NUMBERS // (longest * draws.shape[1])))
    if num < MIN_CHAINS:
        raise InputError(f"fit: {len(draws)} draws are too few to start Markov chains from; {MIN_CHAINS} are needed.")
    share = np.full(len(draws), 1.0 / len(draws)) if weights is None else weights.weights
    return np.minimum(np.searchsorted(np.cumsum(share), (np.arange(num) + 0.5) / num), len(draws) - 1)


def _quantities_at(fit: Fit, density: Density, sites: Sites, points: np.ndarray) -> Quantities:
    """Quantities at points (M, T, D), one chain each. Sites that follow from discrete ones are left out: too dear."""
    num_chains, num_draws, dim = points.shape
    values = density.constrain(points.reshape(-1, dim))
    if not sites.discrete or callable(getattr(fit.model, "identify", None)):
        values = complete(sites, values, paths=callable(getattr(fit.model, "identify", None)))
    draws = {name: np.asarray(v).reshape(num_chains, num_draws, *v.shape[1:]) for name, v in values.items()}
    return quantities(replace(fit, draws=draws))


def raw_moments(fit: Fit, found: Quantities) -> Moments:
    """Moments of the draws; where importance resampling made them, as uncertain as their effective number says."""
    raw = moments(found.draws, independent=True)
    effective = (fit.state.get("importance") or {}).get("ess", np.inf)
    wider = np.sqrt(max(1.0, len(found.pooled) / max(float(effective), 1.0)))
    return replace(
        raw, mean_se=wider * raw.mean_se, log_sd_se=wider * raw.log_sd_se, quantiles_se=wider * raw.quantiles_se
    )


def _in_full(errors: Errors, seen: np.ndarray) -> Errors:
    """Scale up errors of which only a share is seen, (Q,)."""
    scaled = {f.name: getattr(errors, f.name) / seen for f in fields(errors) if f.name != "scale"}
    return replace(errors, **scaled)


def why_unreliable(labels: Sequence[str], moved: Mobility) -> str:
    """Say what is wrong with the chains; empty if nothing is."""
    memory = moved.memory + limits.Z * moved.memory_se
    drift = np.abs(moved.drift) - limits.Z_UNRELIABLE * moved.drift_se
    tail = int(moved.tail_acceptance.argmin())
    if moved.acceptance < limits.CHAIN_ACCEPTANCE:
        return f"they accept only {moved.acceptance:.0%} of their steps"
    if moved.stuck > limits.CHAIN_STUCK:
        return f"{moved.stuck:.1%} of them are stuck"
    if moved.tail_acceptance[tail] < limits.CHAIN_TAIL_ACCEPTANCE:
        share = moved.tail_acceptance[tail]
        return f"they accept only {share:.0%} of their steps at one end of {labels[tail]}, and may not get further"
    if memory.max() > limits.CHAIN_MEMORY:
        at = int(memory.argmax())
        return f"in {labels[at]} they still remember up to {memory[at]:.0%} of where they started"
    if drift.max() > limits.CHAIN_DRIFT:
        at = int(drift.argmax())
        return f"{labels[at]} still drifts, by {moved.drift[at]:+.2f} sd within a run"
    return ""
