"""How well hidden Markov models predict Bach's chorales: negative log-likelihood of the test part, per time step.

    python -m benchmarks.jsb_chorales ../shared/data/jsb-chorales-quarter.json --states 8 16 32

The model is `bernoulli_hmm`; it is trained on the part ``train``, as a point (the highest posterior density, by L-BFGS
on the native density, from states like random steps) and, with ``--svi``, by SVI with independent normals around that
point; it scores the part ``test``, of which it sees nothing. The baseline is a coin for each key of the piano. A
posterior scores a chorale by the mean of its density over draws.
"""

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from pyro.infer.autoguide import AutoNormal
from pyro.infer.autoguide.initialization import init_to_value
from scipy.optimize import minimize

from benchmarks.machine import described
from benchmarks.tables import markdown, number
from inference import SVI, fit, isolated
from inference.density import Density
from inference.sites import read_sites
from inference.validate import prepare_data
from ppl_models import MODELS
from ppl_models.hmm_forecast import chain_at
from ppl_models.sequences import jsb_chorales

MODEL = MODELS["bernoulli_hmm"].model
# Draws of a full posterior that a score is the mean over.
NUM_DRAWS = 40
# Part of a random step of the data in the start of each state: equal states would stay equal.
START_SHARE = 0.3


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


def start_values(data: dict, seed: int) -> dict[str, np.ndarray]:
    """Give each state the frequencies of all notes, and a share of the notes of one random step; states last."""
    rng, K = np.random.default_rng(seed), data["K"]
    seen = torch.arange(data["x"].shape[1]) < data["lengths"].unsqueeze(-1)
    steps = data["x"][seen].numpy()
    frequency = (steps.sum(0) + 0.5) / (len(steps) + 1)
    probability = (1 - START_SHARE) * frequency + START_SHARE * steps[rng.choice(len(steps), K, replace=False)]
    transition = 0.5 * np.eye(K) + 0.5 / K
    return {"initial": np.full(K, 1 / K), "transition": transition, "probability": probability}


def point_estimate(data: dict, num_steps: int, seed: int) -> dict[str, torch.Tensor]:
    """Climb to the highest posterior density, as one draw of each site."""
    with isolated(seed=seed):
        torch.set_default_dtype(torch.float64)
        density = Density(read_sites(MODEL, prepare_data(MODEL, data)), jacobian=False)
        density.compile()
        start = density.unconstrain({name: value[None] for name, value in start_values(data, seed).items()})[0][0]

        def loss(point: np.ndarray) -> tuple[float, np.ndarray]:
            value, gradient = density.value_and_grad(point)
            return -value, -np.asarray(gradient)

        end = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": num_steps, "ftol": 1e-10}).x
        return {name: torch.as_tensor(value) for name, value in density.constrain(end[None]).items()}


def svi(data: dict, around: dict[str, torch.Tensor], num_steps: int, seed: int) -> dict[str, torch.Tensor]:
    """Fit independent normals that start at a point, and draw."""
    start = init_to_value(values={name: value[0] for name, value in around.items()})
    guide = AutoNormal(MODEL, init_loc_fn=start, init_scale=0.05)
    engine = SVI(guide=guide, num_steps=num_steps, lr=0.01, num_samples=NUM_DRAWS // 4, num_chains=4)
    result = fit(MODEL, data, engine, seed=seed)
    return {n: torch.from_numpy(result.draws[n].reshape(-1, *result.draws[n].shape[2:])).double() for n in around}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="JSON file of the chorales")
    parser.add_argument("--states", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--num-steps", type=int, default=300, help="of L-BFGS, and of SVI")
    parser.add_argument("--svi", action="store_true", help="fit the posterior by SVI, too (slow)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    train, test = (jsb_chorales(options.path, part) for part in ("train", "test"))
    rows = [["–", "independent notes", *(f"{baseline(train, part):.3f}" for part in (train, test)), "–"]]
    for K in options.states:
        data, draws = {"x": train[0], "lengths": train[1], "K": K}, {}
        for method in ("point (MAP)", "SVI")[: 1 + options.svi]:
            begin = time.perf_counter()
            if draws:
                draws = svi(data, draws, options.num_steps, options.seed)
            else:
                draws = point_estimate(data, options.num_steps, options.seed)
            seconds = time.perf_counter() - begin
            scores = (f"{score(draws, K, part):.3f}" for part in (train, test))
            rows.append([str(K), method, *scores, number(seconds)])
    print(f"{described()} {torch.get_num_threads()} threads; at most {options.num_steps} steps.\n")
    print(markdown(["states", "method", "train, nats a step", "test, nats a step", "seconds"], rows))


if __name__ == "__main__":
    main()
