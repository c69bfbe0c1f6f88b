"""What `benchmarks.mixtures_hmm` measures, each piece in a process of its own.

``python -m benchmarks.mixtures_hmm_work TASK SETTINGS`` prints what was measured as JSON on its last line.
"""

import json
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

Facts = dict[str, Any]
# sklearn's names of covariances.
SKLEARN = {"diagonal": "diag", "full": "full"}
# Log likelihoods within so many nats are one; an optimiser that stops above a standard deviation of the posterior from
# the maximum misses it by more.
NEAR = 1.0


def clusters(num_rows: int, apart: float, covariance: str, *, D: int = 8, K: int = 8) -> np.ndarray:
    """Draw K clusters of equal size, their centres normal with sd ``apart`` times about the sd of a cluster."""
    rng = np.random.default_rng(0)
    centres = apart * rng.normal(size=(K, D))
    full = 0.3 * rng.normal(size=(K, D, D)) + np.eye(D)
    roots = full if covariance == "full" else np.exp(0.3 * rng.normal(size=(K, D)))[..., None] * np.eye(D)
    component = rng.integers(K, size=num_rows)
    x = rng.normal(size=(num_rows, D))
    for k in range(K):
        x[component == k] = x[component == k] @ roots[k].T + centres[k]
    return x


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """Give what comes out, seconds of the clock, and of the processor."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def _mixture(settings: Facts) -> tuple[np.ndarray, dict[str, Any]]:
    import torch

    x = clusters(settings["rows"], settings["apart"], settings["covariance"])
    return x, {"x": torch.from_numpy(x), "K": 8, "covariance": settings["covariance"], "flat": settings["flat"]}


def point_ours(settings: Facts) -> Facts:
    """`MAP` with flat priors from one start: with an empty cache, then again, recorded anew, with the library known."""
    from inference import MAP, fit, recorded
    from ppl_models import MODELS

    x, data = _mixture({**settings, "flat": True})
    model, engine = MODELS["gaussian_mixture_exchangeable"], MAP(num_starts=1, num_samples=4, num_chains=1)
    fit(model, {**data, "x": data["x"][:200], "flat": False}, engine, seed=0)  # imports
    first, first_wall, _ = timed(lambda: fit(model, data, engine, seed=settings["seed"]))
    recorded.clear()
    again, wall, cpu = timed(lambda: fit(model, data, engine, seed=settings["seed"]))
    assert again.stats["lp"][0, 0] == first.stats["lp"][0, 0]
    return {
        "log_likelihood": float(again.stats["lp"][0, 0]),
        "seconds": wall,
        "cpu": cpu,
        "first": first_wall,
        "gradients": again.num_gradients,
        "parts": again.seconds,
    }


def point_sklearn(settings: Facts) -> Facts:
    """Fit by EM from one start, until a nat from its own maximum, which is found before; and as it stops by itself."""
    from sklearn.mixture import GaussianMixture

    x = clusters(settings["rows"], settings["apart"], settings["covariance"])
    options = {"covariance_type": SKLEARN[settings["covariance"]], "random_state": settings["seed"]}
    GaussianMixture(8, **options).fit(x[:200])
    warnings.simplefilter("ignore")
    own, own_wall, own_cpu = timed(lambda: GaussianMixture(8, **options).fit(x))
    # An iteration at a time; the last bound is that of the parameters before.
    walk, levels = GaussianMixture(8, max_iter=1, tol=0.0, warm_start=True, **options), []
    for _ in range(settings["max_iter"]):
        levels.append(len(x) * walk.fit(x).lower_bound_)
        if len(levels) > 5 and levels[-1] - levels[-6] < 1e-3:
            break
    needed = int(np.argmax(np.array(levels) > levels[-1] - NEAR)) + 1
    _, wall, cpu = timed(lambda: GaussianMixture(8, max_iter=needed, tol=0.0, **options).fit(x))
    return {
        "log_likelihood": levels[-1],
        "arrived": len(levels) < settings["max_iter"],
        "seconds": wall,
        "cpu": cpu,
        "iterations": needed,
        "default": {"log_likelihood": len(x) * own.score(x), "seconds": own_wall, "cpu": own_cpu, "its": own.n_iter_},
    }


def vi_ours(settings: Facts) -> Facts:
    """`AutoVI` of the mixture with its default priors."""
    from inference import AutoVI, fit
    from ppl_models import MODELS

    _, data = _mixture({**settings, "flat": False})
    model = MODELS["gaussian_mixture_exchangeable"]
    fit(model, {**data, "x": data["x"][:200]}, AutoVI(num_starts=1, num_samples=4, budget=0.1), seed=0)
    engine = AutoVI(num_starts=settings["starts"], num_samples=250)
    result, wall, cpu = timed(lambda: fit(model, data, engine, seed=settings["seed"]))
    bound = {"rung": result.state["rung"], "elbo": result.state["elbo"], "gradients": result.num_gradients}
    return {"seconds": wall, "cpu": cpu, "note": result.status.message, **bound}


def vi_sklearn(settings: Facts) -> Facts:
    """`BayesianGaussianMixture` until its bound gains less than a nat in a step."""
    from sklearn.mixture import BayesianGaussianMixture

    x = clusters(settings["rows"], settings["apart"], settings["covariance"])
    options = {"covariance_type": SKLEARN[settings["covariance"]], "random_state": settings["seed"]}
    options["weight_concentration_prior_type"] = "dirichlet_distribution"
    warnings.simplefilter("ignore")
    BayesianGaussianMixture(n_components=8, **options).fit(x[:200])
    result, wall, cpu = timed(lambda: BayesianGaussianMixture(n_components=8, tol=1.0, max_iter=2000, **options).fit(x))
    return {"seconds": wall, "cpu": cpu, "iterations": int(result.n_iter_), "converged": bool(result.converged_)}


def _chain(settings: Facts) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Give a series (T,) and the parameters of K sticky states that made it."""
    rng, K, T = np.random.default_rng(1), settings["K"], settings["T"]
    transition = np.full((K, K), 0.1 / (K - 1)) + np.eye(K) * (0.9 - 0.1 / (K - 1))
    loc, scale = 2.0 * np.arange(K), np.linspace(0.7, 1.3, K)
    states = [0]
    for u in rng.random(T - 1):
        states.append(int(np.searchsorted(transition[states[-1]].cumsum(), u)))
    x = loc[states] + scale[states] * rng.normal(size=T)
    return x, {"initial": np.full(K, 1 / K), "transition": transition, "loc": loc, "scale": scale}


def _repeated(work: Callable[[], Any], num: int) -> float:
    """Median seconds of one call, after one that warms up."""
    work()
    return statistics.median(timed(work)[1] for _ in range(num))


def chain_model(x: Any, K: int) -> None:
    """A hidden Markov model without priors: its density is the likelihood."""
    import pyro
    import pyro.distributions as dist
    from torch.distributions import constraints

    from ppl_models.hidden_markov import HiddenMarkov

    def flat(support: Any, *shape: int) -> Any:
        return dist.ImproperUniform(support, (), shape)

    initial = pyro.sample("initial", flat(constraints.simplex, K))
    with pyro.plate("state", K):
        transition = pyro.sample("transition", dist.ImproperUniform(constraints.simplex, (K,), (K,)))
    loc = pyro.sample("loc", flat(constraints.independent(constraints.real, 1), K))
    scale = pyro.sample("scale", flat(constraints.independent(constraints.positive, 1), K))
    emission = dist.Normal(loc.unsqueeze(-2), scale.unsqueeze(-2))
    pyro.sample("x", HiddenMarkov(initial.log(), transition.log(), emission, len(x)), obs=x)


def chain_ours(settings: Facts) -> Facts:
    """Value and gradient of the compiled density."""
    import torch

    from inference.density import Density
    from inference.isolation import isolated
    from inference.sites import read_sites
    from inference.validate import prepare_data

    x, values = _chain(settings)
    with isolated(0, dtype=torch.float64):
        sites = read_sites(chain_model, prepare_data(chain_model, {"x": x, "K": settings["K"]}))
        density = Density(sites, jacobian=False)
        (point,), _ = density.unconstrain({name: value[None] for name, value in values.items()})
        density.compile()
        seconds = _repeated(lambda: density.value_and_grad(point), settings["repeats"])
        value = density.value_and_grad(point)[0]
    return {"log_likelihood": value, "gradient": seconds, "forward": seconds, "note": density.backend}


def chain_dynamax(settings: Facts) -> Facts:
    """dynamax's filter in float64, compiled: the log likelihood, and with its gradient in all parameters."""
    import jax

    jax.config.update("jax_enable_x64", val=True)
    import jax.numpy as jnp
    from dynamax.hidden_markov_model import hmm_filter
    from jax.scipy.stats import norm

    x, values = _chain(settings)
    x, parameters = jnp.asarray(x), {name: jnp.asarray(value) for name, value in values.items()}

    def log_likelihood(p: dict[str, Any]) -> Any:
        emission = norm.logpdf(x[:, None], p["loc"], p["scale"])
        return hmm_filter(p["initial"], p["transition"], emission).marginal_loglik

    forward, both = jax.jit(log_likelihood), jax.jit(jax.value_and_grad(log_likelihood))
    return {
        "log_likelihood": float(forward(parameters)),
        "forward": _repeated(lambda: forward(parameters).block_until_ready(), settings["repeats"]),
        "gradient": _repeated(lambda: jax.block_until_ready(both(parameters)), settings["repeats"]),
    }


def chain_hmmlearn(settings: Facts) -> Facts:
    """hmmlearn's forward pass, which has no gradient."""
    from hmmlearn.hmm import GaussianHMM

    x, values = _chain(settings)
    model = GaussianHMM(settings["K"], covariance_type="diag")
    model.startprob_, model.transmat_ = values["initial"], values["transition"]
    model.means_, model.covars_ = values["loc"][:, None], values["scale"][:, None] ** 2
    rows = x[:, None]
    return {
        "log_likelihood": float(model.score(rows)),
        "forward": _repeated(lambda: model.score(rows), settings["repeats"]),
    }


def batches_model(x: Any, K: int, size: int) -> None:
    """A mixture of normals with independent columns, on a batch of the rows at each step."""
    import pyro
    import pyro.distributions as dist
    import torch

    weights = pyro.sample("weights", dist.Dirichlet(2 * torch.ones(K)))
    with pyro.plate("component", K):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(x.shape[1]), 3.0).to_event(1))
        scale = pyro.sample("scale", dist.LogNormal(torch.zeros(x.shape[1]), 0.75).to_event(1))
    with pyro.plate("data", len(x), subsample_size=size) as rows:
        assignment = pyro.sample("assignment", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(loc[assignment], scale[assignment]).to_event(1), obs=x[rows])


def memory_ours(settings: Facts) -> Facts:
    """Peak resident memory of mini-batch SVI, the data and all libraries included."""
    from inference import SVI, fit

    x = clusters(settings["rows"], 2.0, "diagonal")
    engine = SVI(num_steps=settings["steps"], num_samples=250)
    data = {"x": x, "K": 8, "size": settings["batch"]}
    result, wall, cpu = timed(lambda: fit(batches_model, data, engine, seed=0))
    # Linux counts in kB, macOS in bytes.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e3 if sys.platform == "linux" else 1e6)
    return {
        "peak": peak,
        "data": x.nbytes / 1e6,
        "seconds": wall,
        "cpu": cpu,
        "loss": float(result.history["loss"][-1]),
    }


TASKS = {
    task.__name__: task
    for task in (point_ours, point_sklearn, vi_ours, vi_sklearn, chain_ours, chain_dynamax, chain_hmmlearn, memory_ours)
}
REQUIRES = {"ours": ("inference",), "sklearn": ("sklearn",), "dynamax": ("dynamax",), "hmmlearn": ("hmmlearn",)}


def main() -> None:
    task, settings = sys.argv[1:]
    print(json.dumps(TASKS[task](json.loads(settings))))


if __name__ == "__main__":
    main()
