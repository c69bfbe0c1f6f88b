"""How well a deep Markov model predicts Bach's chorales: negative log-likelihood of the test part, per time step.

    python -m benchmarks.deep_markov ../shared/data/jsb-chorales-quarter.json

The model is `deep_markov` with its guide; the bound has the KL of each step in closed form, weighted from a fifth up to
one over the first epochs (Krishnan, Shalit & Sontag 2017). The parameters kept are those of the best bound on the part
``valid``; the part ``test`` is looked at once, at the end: the bound, and importance sampling with the guide as
proposal. Both are of whole parts over all their steps.
"""

import argparse
import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import TraceMeanField_ELBO
from torch.optim.lr_scheduler import LambdaLR

from benchmarks.machine import described
from benchmarks.tables import markdown
from inference import SVI, Fit, fit
from ppl_models import MODELS
from ppl_models.sequences import jsb_chorales

MODEL = MODELS["deep_markov"]
# Paths that the bound of a part is the mean over, and those that importance sampling holds in memory at once.
NUM_PATHS, AT_ONCE = 4, 20
FIRST_KL_WEIGHT = 0.2
CLIP_NORM = 10.0  # of the gradient per sequence
LAST_LR = 0.01  # part of the learning rate at the end
BETAS = (0.96, 0.999)  # as Krishnan et al.: momentum over more steps, since batches are small

Part = tuple[torch.Tensor, torch.Tensor]


def batch(part: Part, rows: torch.Tensor, settings: dict[str, int]) -> dict[str, Any]:
    """Cut sequences out, padded to the longest of them only."""
    x, lengths = part[0][rows], part[1][rows]
    return {"x": x[:, : int(lengths.max())].contiguous(), "lengths": lengths, **settings}


@torch.no_grad()
def bound(part: Part, settings: dict[str, int]) -> float:
    """Negative ELBO per time step."""
    data = batch(part, torch.arange(len(part[0])), settings)
    elbo = TraceMeanField_ELBO(num_particles=NUM_PATHS)
    return elbo.loss(MODEL.model, MODEL.guide, **data) / part[1].sum().item()


@torch.no_grad()
def importance_sampled(part: Part, settings: dict[str, int], num_samples: int) -> tuple[float, float]:
    """Negative log-likelihood per time step by importance sampling, and its standard error."""
    data = batch(part, torch.arange(len(part[0])), settings)

    def many(function: Any) -> Any:
        def particles(**arguments: Any) -> None:
            with pyro.plate("particles", AT_ONCE, dim=-2):
                function(**arguments)

        return particles

    log_weights = []
    for _ in range(math.ceil(num_samples / AT_ONCE)):
        guide = poutine.trace(many(MODEL.guide)).get_trace(**data)
        model = poutine.trace(poutine.replay(many(MODEL.model), trace=guide)).get_trace(**data)
        guide.compute_log_prob()
        model.compute_log_prob()
        log_weights.append(sum(model.nodes[n]["log_prob"] for n in ("z", "x")) - guide.nodes["z"]["log_prob"])
    log_weight = torch.cat(log_weights).double()
    log_mean = log_weight.logsumexp(0) - math.log(len(log_weight))
    variance = (log_weight - log_mean).exp().var(0) / len(log_weight)  # of each mean, relative: the delta method
    steps = part[1].sum().item()
    return -log_mean.sum().item() / steps, variance.sum().sqrt().item() / steps


def train(parts: dict[str, Part], settings: dict[str, int], options: argparse.Namespace) -> Fit:
    """Train on one part, and end with the parameters of the best bound on another."""
    data = {name: {"x": x, "lengths": lengths, **settings} for name, (x, lengths) in parts.items()}
    num_sequences = len(parts["train"][0])
    num_steps = options.num_epochs * math.ceil(num_sequences / options.batch_size)

    def kl_weight(step: int) -> float:
        return min(1.0, FIRST_KL_WEIGHT + (1 - FIRST_KL_WEIGHT) * step / (options.annealed * num_steps))

    def falling(adam: torch.optim.Optimizer) -> LambdaLR:  # over the last half
        return LambdaLR(adam, lambda step: LAST_LR ** max(0.0, 2 * step / num_steps - 1))

    engine = SVI(
        guide=MODEL.guide,
        elbo="trace_mean_field",
        batch_size=options.batch_size,
        num_epochs=options.num_epochs,
        validation=data["valid"],
        kl_weight=kl_weight,
        optimizer=partial(torch.optim.Adam, betas=BETAS, weight_decay=options.weight_decay),
        lr=options.lr,
        lr_schedule=falling,
        clip_norm=CLIP_NORM * num_sequences,  # gradients are those of all sequences
        num_samples=4,
        num_chains=1,
        dtype="float32",
    )
    return fit(MODEL, data["train"], engine, seed=options.seed, progress=options.progress)


def curve(result: Fit, parts: dict[str, Part], num_rows: int = 20) -> str:
    """Give the bounds in nats per time step along the training, some twenty times."""
    steps, elbo = result.history["validation_step"], result.history["validation_elbo"]
    per_row = parts["valid"][1].double().mean().item()
    every = max(1, len(steps) // num_rows)
    rows = [[f"{s:.0f}", f"{-e / per_row:.3f}"] for s, e in list(zip(steps, elbo, strict=True))[every - 1 :: every]]
    return markdown(["step", "valid, bound"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="JSON file of the chorales")
    parser.add_argument("--num-epochs", type=int, default=800)
    parser.add_argument("--num-latents", type=int, default=48)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--rnn-hidden", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=20)
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--weight-decay", type=float, default=0.0)
    parser.add_argument("--annealed", type=float, default=0.3, help="share of the steps until the KL counts fully")
    parser.add_argument("--num-samples", type=int, default=500, help="of importance sampling")
    parser.add_argument("--progress", action="store_true", help="show a bar with the current bound")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    settings = {name: getattr(options, name) for name in ("num_latents", "hidden", "rnn_hidden")}
    parts = {}
    for name in ("train", "valid", "test"):
        x, lengths = jsb_chorales(options.path, name)
        parts[name] = x.float(), lengths
    begin = time.process_time()
    result = train(parts, settings, options)
    minutes = (time.process_time() - begin) / 60
    print(curve(result, parts))
    print(
        f"\n{described()} {torch.get_num_threads()} threads; {minutes:.1f} minutes of a core. {result.status.message}\n"
    )
    rows = []
    for name, part in parts.items():
        with result.restored():
            estimate, error = importance_sampled(part, settings, options.num_samples)
            rows.append([name, f"{bound(part, settings):.3f}", f"{estimate:.3f}", f"{error:.4f}"])
    print(markdown(["part", "bound, nats a step", f"{options.num_samples} importance samples", "standard error"], rows))


if __name__ == "__main__":
    main()
