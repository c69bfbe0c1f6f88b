"""How often is a verdict wrong? Simulated posteriors, right and deliberately wrong fits.

For `compare`, by posterior, effective sample size of the reference and number of quantities: how often an exact copy is
called wrong or left undecided, and how often a candidate with one wrong quantity is trusted. For `check`, by dimension:
how often a nearly exact fit is not trusted, and how often one with a wrong quantity is trusted without re-weighting.
For its second opinion, short chains from the draws: the same, on a Gaussian and on a skewed posterior.

Usage: python -m benchmarks.verdict_rates [--num-replicates 50] [--seed 0]
"""

import argparse
from itertools import product
from types import SimpleNamespace

import numpy as np

from inference.agreement import errors_between, judge_agreement
from inference.diagnostics import Moments, moments, tail_index
from inference.fit import Fit, Status
from inference.second_opinion import Opinion, judge_opinion, opine, until_clear
from inference.short_chains import NUM_CHAINS as NUM_STARTS
from inference.short_chains import LogDensity, ShortChains, short_chains, whitening
from inference.verdict import VerdictKind, check

NUM_CHAINS, NUM_DRAWS = 4, 1000


def chains(rng: np.random.Generator, *, ess: int, num_quantities: int, degrees: float) -> np.ndarray:
    """Stationary chains (4, 1000, Q) of about `ess` effective draws with Student-t marginals (inf: Gaussian).

    Gaussian AR(1) chains; the Student's common scale is an inverse chi-square built from AR(1) chains as well.
    """
    correlation = (NUM_CHAINS * NUM_DRAWS - ess) / (NUM_CHAINS * NUM_DRAWS + ess)  # ESS = S (1 - rho) / (1 + rho)
    normal = _ar1(rng, correlation, num_quantities)
    if np.isinf(degrees):
        return normal
    squares = sum(_ar1(rng, correlation, num_quantities) ** 2 for _ in range(int(degrees)))
    return normal * np.sqrt(degrees / squares)


def _ar1(rng: np.random.Generator, correlation: float, num_quantities: int) -> np.ndarray:
    x = rng.normal(size=(NUM_CHAINS, NUM_DRAWS, num_quantities))
    for t in range(1, NUM_DRAWS):
        x[:, t] = correlation * x[:, t - 1] + np.sqrt(1.0 - correlation**2) * x[:, t]
    return x


def exact(rng: np.random.Generator, *, num_quantities: int, degrees: float) -> np.ndarray:
    """Independent draws from the same posterior."""
    shape = (NUM_CHAINS, NUM_DRAWS, num_quantities)
    return rng.normal(size=shape) if np.isinf(degrees) else rng.standard_t(degrees, size=shape)


def rates(*, ess: int, num_quantities: int, degrees: float, num_replicates: int, seed: int) -> list[float]:
    """Shares of replicates: exact copy called wrong, exact copy undecided, mean error trusted, sd errors trusted."""
    rng = np.random.default_rng(seed)
    sd = 1.0 if np.isinf(degrees) else np.sqrt(degrees / (degrees - 2.0))
    labels = tuple(f"x[{i}]" for i in range(num_quantities))
    counts = np.zeros(5)
    for _ in range(num_replicates):
        draws = chains(rng, ess=ess, num_quantities=num_quantities, degrees=degrees)
        reference, index = moments(draws, independent=False), tail_index(draws)
        copy = exact(rng, num_quantities=num_quantities, degrees=degrees)
        shifted, narrow, wide = copy.copy(), copy.copy(), copy.copy()
        shifted[:, :, 0] += 0.2 * sd
        narrow[:, :, 0] /= 1.25
        wide[:, :, 0] *= 1.25
        kinds = [
            judge_agreement(labels, errors_between(moments(x, independent=True), reference, tail_index=index)).kind
            for x in (copy, shifted, narrow, wide)
        ]
        counts[0] += kinds[0] not in (VerdictKind.TRUST, VerdictKind.CANNOT_TELL)
        counts[1] += kinds[0] is VerdictKind.CANNOT_TELL
        counts[2:] += [kind is VerdictKind.TRUST for kind in kinds[1:]]
    return list(counts / num_replicates)


def check_rates(*, dimension: int, num_replicates: int, seed: int) -> list[float]:
    """Shares of `check` on Gaussian fits: nearly right ones not trusted, then each kind of wrong one trusted raw."""
    rng = np.random.default_rng(seed)
    first = np.eye(dimension)[0]
    fits = [  # (mean, sd) of q in units of the posterior, which is N(0, I)
        (np.full(dimension, 0.03), np.full(dimension, 0.97)),
        (0.2 * first, np.ones(dimension)),
        (np.zeros(dimension), 1.25 ** (-first)),
        (np.zeros(dimension), 1.25**first),
    ]
    counts = np.zeros(4)
    for _ in range(num_replicates):
        for i, (mean, sd) in enumerate(fits):
            z = rng.normal(size=(NUM_CHAINS, NUM_DRAWS, dimension))
            x = mean + sd * z
            log_weight = (0.5 * z**2 + np.log(sd) - 0.5 * x**2).sum(axis=-1)
            kind = check(_approximation(x, log_weight), search=_no_other_mode).kind
            counts[i] += kind is not VerdictKind.TRUST if i == 0 else kind is VerdictKind.TRUST
    return list(counts / num_replicates)


def chain_rates(*, posterior: str, dimension: int, num_replicates: int, seed: int) -> list[float]:
    """Shares of short chains: exact draws not trusted, then trusted although the first quantity has each error."""
    rng = np.random.default_rng(seed)
    labels = tuple(f"x[{i}]" for i in range(dimension))
    counts = np.zeros(4)
    for replicate in range(num_replicates):
        for i in range(4):
            x, log_density = _target(posterior, rng, dimension)
            centre, sd = x.mean(axis=0), x.std(axis=0)
            x[:, 0] += (0.0, 0.2 * sd[0], 0.0, 0.0)[i]
            x[:, 0] = centre[0] + (x[:, 0] - centre[0]) * (1.0, 1.0, 1 / 1.25, 1.25)[i]
            raw, starts = moments(x[None], independent=True), x[:: len(x) // NUM_STARTS][:NUM_STARTS]

            def look(chains: ShortChains, raw: Moments = raw) -> Opinion:
                return opine(labels, chains.starts, chains.points, chains.acceptance, raw=raw)

            chains = short_chains(log_density, starts, by=whitening(x), seed=replicate)
            trusted = judge_opinion(until_clear(chains, look), None, "").kind is VerdictKind.TRUST
            counts[i] += not trusted if i == 0 else trusted
    return list(counts / num_replicates)


def _target(posterior: str, rng: np.random.Generator, dimension: int) -> tuple[np.ndarray, LogDensity]:
    """Exact draws (4000, D) and the log density: independent Gaussians, or logs of gamma variables of shape 2."""
    shape = NUM_CHAINS * NUM_DRAWS, dimension
    if posterior == "Gaussian":
        return rng.normal(size=shape), lambda x: (-0.5 * (x**2).sum(axis=1), -x)
    return np.log(rng.gamma(2.0, size=shape)), lambda x: ((2.0 * x - np.exp(x)).sum(axis=1), 2.0 - np.exp(x))


def _approximation(draws: np.ndarray, log_weight: np.ndarray) -> Fit:
    return Fit(
        draws={"x": draws},
        stats={"log_weight": log_weight},
        history={},
        status=Status("converged", "Made by hand."),
        engine=SimpleNamespace(method="vi"),
        seed=0,
        seconds={},
        model=None,
        data={},
    )


def _no_other_mode(fit: Fit) -> SimpleNamespace:
    return SimpleNamespace(num_settled=8, num_elsewhere=0, message="")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-replicates", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    arguments = vars(parser.parse_args())
    print("compare                       exact copy:           trusted although one quantity has")
    print("posterior    ESS  quantities  called wrong  undecided   mean +.2 sd   sd / 1.25   sd x 1.25")
    for degrees, ess, num_quantities in product((np.inf, 5.0, 3.0), (1000, 4000), (10, 50)):
        row = rates(ess=ess, num_quantities=num_quantities, degrees=degrees, **arguments)
        name = "Gaussian" if np.isinf(degrees) else f"Student {degrees:.0f}"
        print(f"{name:10s} {ess:5d} {num_quantities:11d}  {_cells(row)}", flush=True)
    print("\ncheck          nearly exact:   trusted although one quantity has")
    print("dimension      not trusted    mean +.2 sd   sd / 1.25   sd x 1.25")
    for dimension in (2, 10, 50):
        print(f"{dimension:9d}     {_cells(check_rates(dimension=dimension, **arguments))}", flush=True)
    print("\nshort chains   exact draws:    trusted although one quantity has")
    print("posterior  D   not trusted    mean +.2 sd   sd / 1.25   sd x 1.25")
    for posterior, dimension in product(("Gaussian", "skewed"), (2, 10, 50)):
        row = chain_rates(posterior=posterior, dimension=dimension, **arguments)
        print(f"{posterior:9s} {dimension:2d}  {_cells(row)}", flush=True)


def _cells(shares: list[float]) -> str:
    return "  ".join(f"{share:10.1%}" for share in shares)


if __name__ == "__main__":
    main()
