"""Do the four ways of writing each model define the same posterior?

Log densities on the constrained space, at a few random points, against a closed form in numpy and scipy: differences
between points must agree, so constants may differ. Peers that are not installed are left out and named.

Usage: python -m benchmarks.check [--models schools ...] [--peers pyro numpyro pymc stan]
"""

import argparse
import os
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np

from benchmarks.models import CASES, Case

NUM_POINTS = 4
# Sums over 20000 rows are exact to about 1e-11 of their size.
TOLERANCE = 1e-8

Points = list[dict[str, np.ndarray]]


def pyro_density(case: Case, points: Points) -> np.ndarray:
    """Log joint densities of a Pyro model on the constrained space, enumerated sites summed out."""
    import torch

    from inference.density import Density
    from inference.isolation import isolated
    from inference.sites import read_sites
    from inference.validate import prepare_data

    with isolated(0, dtype=torch.float64, own=[case.pyro]):
        density = Density(read_sites(case.pyro, prepare_data(case.pyro, case.data())))
        batch = {
            name: np.array([np.asarray(values[name], dtype=np.float64) for values in points]) for name in points[0]
        }
        unconstrained, log_jacobian = density.unconstrain(batch)
        return density.log_density(unconstrained) - log_jacobian


def numpyro_density(case: Case, points: Points) -> np.ndarray:
    """Log joint densities of a NumPyro model on the constrained space."""
    import jax
    from numpyro.infer.util import log_density

    jax.config.update("jax_enable_x64", True)
    model, data = case.numpyro(), case.data()
    return np.array([float(log_density(model, (), data, values)[0]) for values in points])


def pymc_density(case: Case, points: Points) -> np.ndarray:
    """Log joint densities of a PyMC model on the constrained space."""
    model = case.pymc(case.data())
    function = model.compile_fn(model.logp(jacobian=False), mode="FAST_COMPILE")
    results = []
    for values in points:
        point = {}
        for variable in model.free_RVs:
            transform, value = model.rvs_to_transforms[variable], np.asarray(values[variable.name])
            if transform is not None:
                value = transform.forward(value, *variable.owner.inputs).eval()
            point[model.rvs_to_values[variable].name] = value
        results.append(float(function(point)))
    return np.array(results)


def stan_density(case: Case, points: Points) -> np.ndarray:
    """Log joint densities of a Stan program on the constrained space; builds the program."""
    from benchmarks.stan_program import Program, library

    program = Program(library(case.stan), case.stan_data())
    return np.array([program.log_density(program.unconstrain(values), jacobian=False) for values in points])


DENSITIES: dict[str, Callable[[Case, Points], np.ndarray]] = {
    "pyro": pyro_density,
    "numpyro": numpyro_density,
    "pymc": pymc_density,
    "stan": stan_density,
}


def largest_difference(case: Case, density: Callable[[Case, Points], np.ndarray], *, seed: int = 0) -> float:
    """Largest difference from the closed form, relative to the spread over the points, constants aside."""
    rng, data = np.random.default_rng(seed), case.data()
    points = [case.draw(rng) for _ in range(NUM_POINTS)]
    expected = np.array([case.log_joint(values, data) for values in points])
    excess = density(case, points) - expected
    return float(np.ptp(excess) / np.ptp(expected))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--peers", nargs="+", default=list(DENSITIES), choices=list(DENSITIES))
    arguments = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    absent = [name for name in arguments.peers if find_spec({"stan": "httpstan"}.get(name, name)) is None]
    print("Absent: " + (", ".join(absent) or "none"))
    failed = False
    for name in arguments.models:
        for peer in arguments.peers:
            if peer not in absent:
                difference = largest_difference(CASES[name], DENSITIES[peer])
                failed |= not difference < TOLERANCE
                print(f"{name:20s} {peer:8s} {difference:.1e}", flush=True)
    raise SystemExit(int(failed))


if __name__ == "__main__":
    main()
