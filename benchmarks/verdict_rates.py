"""How often is a verdict of `compare` wrong? Simulated posteriors, exact copies and deliberately wrong candidates.

Prints, for each posterior, effective sample size and number of quantities: how often an exact copy is not trusted
(false alarm: called wrong, or left at "cannot tell") and how often a candidate with one wrong quantity is trusted.

Usage: python benchmarks/verdict_rates.py [--num-replicates 100] [--seed 0]
"""

import argparse
from itertools import product

import numpy as np

from inference.agreement import errors_between, judge_agreement
from inference.diagnostics import moments, tail_index
from inference.verdict_kinds import VerdictKind

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-replicates", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print("                              exact copy:           trusted although one quantity has")
    print("posterior    ESS  quantities  called wrong  undecided   mean +.2 sd   sd / 1.25   sd x 1.25")
    for degrees, ess, num_quantities in product((np.inf, 5.0, 3.0), (1000, 4000), (10, 50)):
        row = rates(
            ess=ess,
            num_quantities=num_quantities,
            degrees=degrees,
            num_replicates=arguments.num_replicates,
            seed=arguments.seed,
        )
        name = "Gaussian" if np.isinf(degrees) else f"Student {degrees:.0f}"
        cells = "  ".join(f"{value:10.1%}" for value in row)
        print(f"{name:10s} {ess:5d} {num_quantities:11d}  {cells}", flush=True)


if __name__ == "__main__":
    main()
