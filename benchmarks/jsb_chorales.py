"""How well hidden Markov models predict Bach's chorales: negative log-likelihood of the test part, per time step.

    python -m benchmarks.jsb_chorales ../shared/data/jsb-chorales-quarter.json --states 8 16 32

The model is `bernoulli_hmm`; it is trained on the part ``train``, as a point (the highest posterior density, by L-BFGS
on the native density, the better of two climbs from clusterings of the steps) and by ``SVI(guide="normal")``,
independent normals over all parameters, which finds its start by itself. It scores the part ``test``, of which it sees
nothing. The baseline is a coin for each key of the piano. A posterior scores a chorale by the mean of its density over
draws; beside it stands the density at the posterior means of the parameters.
"""

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import minimize

from benchmarks.machine import described
from benchmarks.tables import markdown, number
from inference import SVI, fit, isolated
from inference.cluster_starts import proposed_starts
from inference.density import Density
from inference.sites import read_sites
from inference.validate import prepare_data
from ppl_models import MODELS
from ppl_models.hmm_forecast import chain_at
from ppl_models.sequences import jsb_chorales

MODEL = MODELS["bernoulli_hmm"].model
# Draws of a full posterior that a score is the mean over.
NUM_DRAWS = 40
# Climbs of the point estimate.
NUM_STARTS = 2


def baseline(train: tuple[torch.Tensor, torch.Tensor], test: tuple[torch.Tensor, torch.Tensor]) -> float:
    """Score of independent notes: each key has the frequency that it has in training (with half a count added)."""
    x, lengths = train
    steps = lengths.sum()
    probability = (x.sum((0, 1)) + 0.5) / (steps + 1)
    x, lengths = test
    log_prob = x * probability.log() + (1 - x) * (-probability).log1p()
    seen = torch.arange(x.shape[1]) < lengths.unsqueeze(-1)
    return -(log_prob.sum(-1) * seen).sum().item() / lengths.sum().item()


def score(draws: dict[str, torch.Tensor], K: int, test: tuple[torch.Tensor, torch.Tensor]) -> float:
    """Negative log-likelihood per time step of whole chorales, each the mean of its density over draws."""
    x, lengths = test
    data = {"x": x, "lengths": lengths, "K": K}
    each = []
    for i in range(len(draws["initial"])):  # one by one: all at once would be gigabytes
        chain = chain_at(MODEL, data, {name: value[i : i + 1] for name, value in draws.items()})
        each.append(chain.log_prob(x)[0])
    density = torch.logsumexp(torch.stack(each), 0) - math.log(len(each))
    return -density.sum().item() / lengths.sum().item()


def point_estimate(data: dict, num_steps: int, seed: int) -> dict[str, torch.Tensor]:
    """Climb to the highest posterior density, as one draw of each site."""
    with isolated(seed=seed):
        torch.set_default_dtype(torch.float64)
        density = Density(read_sites(MODEL, prepare_data(MODEL, data)), jacobian=False)
        density.compile()

        def loss(point: np.ndarray) -> tuple[float, np.ndarray]:
            value, gradient = density.value_and_grad(point)
            return -value, -np.asarray(gradient)

        starts = proposed_starts(density, NUM_STARTS, generator=np.random.default_rng(seed))
        options = {"maxiter": num_steps, "ftol": 1e-10}
        ends = [minimize(loss, start, jac=True, method="L-BFGS-B", options=options) for start in starts]
        best = min(ends, key=lambda end: end.fun).x
        return {name: torch.as_tensor(value) for name, value in density.constrain(best[None]).items()}


def svi(data: dict, num_steps: int, seed: int) -> dict[str, torch.Tensor]:
    """Fit independent normals to the whole posterior, and draw."""
    engine = SVI(guide="normal", num_steps=num_steps, num_samples=NUM_DRAWS // 4, num_chains=4)
    result = fit(MODEL, data, engine, seed=seed)
    names = ("initial", "transition", "probability")
    return {n: torch.from_numpy(result.draws[n].reshape(-1, *result.draws[n].shape[2:])).double() for n in names}


def means(draws: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Give the means of draws, as one draw of each site."""
    return {name: value.mean(0, keepdim=True) for name, value in draws.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="JSON file of the chorales")
    parser.add_argument("--states", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--num-steps", type=int, default=300, help="of L-BFGS, and of SVI")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    train, test = (jsb_chorales(options.path, part) for part in ("train", "test"))
    rows = [["–", "independent notes", *(f"{baseline(train, part):.3f}" for part in (train, test)), "–", "–"]]
    for K in options.states:
        data = {"x": train[0], "lengths": train[1], "K": K}
        for method, run in (("point (MAP)", point_estimate), ("full SVI", svi)):
            begin = time.process_time()
            draws = run(data, options.num_steps, options.seed)
            seconds = time.process_time() - begin
            scores = [f"{score(draws, K, part):.3f}" for part in (train, test)]
            at_means = f"{score(means(draws), K, test):.3f}"
            rows.append([str(K), method, *scores, at_means, number(seconds)])
    print(f"{described()} {torch.get_num_threads()} threads; at most {options.num_steps} steps.\n")
    header = ["states", "method", "train, nats a step", "test, nats a step", "test, at the means", "CPU seconds"]
    print(markdown(header, rows))


if __name__ == "__main__":
    main()
