"""How well a deep Markov model predicts Bach's chorales: negative log-likelihood of the test part, per time step.

    python -m benchmarks.deep_markov ../shared/data/jsb-chorales-quarter.json --minutes 30

The model is `deep_markov` with its guide; the bound has the KL of each step in closed form, weighted from a fifth up to
one over the first epochs (Krishnan, Shalit & Sontag 2017). The parameters kept are those of the best bound on the part
``valid``; the part ``test`` is looked at once, at the end: the bound, and importance sampling with the guide as
proposal. Both are of whole parts over all their steps.
"""

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import TraceMeanField_ELBO

from benchmarks.machine import described
from benchmarks.tables import markdown
from ppl_models import MODELS
from ppl_models.sequences import jsb_chorales

MODEL = MODELS["deep_markov"]
# Paths that the bound of a part is the mean over, and those that importance sampling holds in memory at once.
NUM_PATHS, AT_ONCE = 4, 20
FIRST_KL_WEIGHT = 0.2
CLIP_NORM = 10.0
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


@dataclass(frozen=True)
class Look:
    """The bound in nats per time step, of the training part in the last epoch and of the validation part."""

    epoch: int
    minutes: float
    kl_weight: float
    train: float
    valid: float

    def __str__(self) -> str:
        kind = f"train {self.train:.3f} (KL weight {self.kl_weight:.2f})  valid {self.valid:.3f}"
        return f"epoch {self.epoch:5d}  {self.minutes:5.1f} min  {kind}"


def parameters() -> dict[str, Any]:
    """Copy what is in Pyro's store."""
    state = pyro.get_param_store().get_state()
    return state | {"params": {name: value.detach().clone() for name, value in state["params"].items()}}


def run_epoch(part: Part, guide: Any, settings: dict[str, int], adam: torch.optim.Optimizer, batch_size: int) -> float:
    """Take a step for each batch; give the mean of their bounds per time step."""
    elbo, total = TraceMeanField_ELBO(), 0.0
    weights = adam.param_groups[0]["params"]
    for rows in torch.randperm(len(part[0])).split(batch_size):
        loss = elbo.differentiable_loss(MODEL.model, guide, **batch(part, rows, settings))
        adam.zero_grad()
        (loss / len(rows)).backward()
        torch.nn.utils.clip_grad_norm_(weights, CLIP_NORM)
        adam.step()
        total += loss.item()
    return total / part[1].sum().item()


def train(parts: dict[str, Part], settings: dict[str, int], options: argparse.Namespace) -> list[Look]:
    """Train until the time is up or Ctrl-C, and leave the parameters of the best validation bound in Pyro's store."""
    store = pyro.get_param_store()
    # One look at the bound makes the parameters.
    TraceMeanField_ELBO().loss(MODEL.model, MODEL.guide, **batch(parts["train"], torch.arange(1), settings))
    weights = [store[name].unconstrained() for name in store]
    adam = torch.optim.Adam(weights, lr=options.lr, betas=BETAS, weight_decay=options.weight_decay)
    begin, share, curve, best = time.process_time(), 0.0, [], parameters()
    epoch = 0
    try:
        while share < 1:
            adam.param_groups[0]["lr"] = options.lr * LAST_LR ** max(0.0, 2 * share - 1)  # falls over the last half
            kl_weight = min(1.0, FIRST_KL_WEIGHT + (1 - FIRST_KL_WEIGHT) * share / options.annealed)
            guide = poutine.scale(MODEL.guide, scale=kl_weight)
            loss = run_epoch(parts["train"], guide, settings, adam, options.batch_size)
            epoch, share = epoch + 1, (time.process_time() - begin) / (60 * options.minutes)
            if epoch % options.every == 0 or share >= 1:
                look = Look(epoch, share * options.minutes, kl_weight, loss, bound(parts["valid"], settings))
                print(look, flush=True)
                if not curve or look.valid < min(old.valid for old in curve):
                    best = parameters()
                curve.append(look)
    except KeyboardInterrupt:
        print("stopped by hand", flush=True)
    store.set_state(best)
    return curve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="JSON file of the chorales")
    parser.add_argument("--minutes", type=float, default=30.0, help="of one core's time, for training")
    parser.add_argument("--num-latents", type=int, default=48)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--rnn-hidden", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=20)
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--weight-decay", type=float, default=0.0)
    parser.add_argument("--annealed", type=float, default=0.3, help="share of the time until the KL counts fully")
    parser.add_argument("--num-samples", type=int, default=500, help="of importance sampling")
    parser.add_argument("--every", type=int, default=10, help="epochs between two looks at the validation part")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_default_dtype(torch.float32)
    pyro.set_rng_seed(options.seed)
    pyro.clear_param_store()
    with pyro.validation_enabled(False):
        report(options)


def report(options: argparse.Namespace) -> None:
    """Train, and print the curve and the scores."""
    settings = {name: getattr(options, name) for name in ("num_latents", "hidden", "rnn_hidden")}
    parts = {}
    for name in ("train", "valid", "test"):
        x, lengths = jsb_chorales(options.path, name)
        parts[name] = x.float(), lengths
    last = train(parts, settings, options)[-1]
    threads = torch.get_num_threads()
    print(f"\n{described()} {threads} threads; {last.minutes:.1f} minutes, {last.epoch} epochs.\n")
    rows = []
    for name, part in parts.items():
        estimate, error = importance_sampled(part, settings, options.num_samples)
        rows.append([name, f"{bound(part, settings):.3f}", f"{estimate:.3f}", f"{error:.4f}"])
    print(markdown(["part", "bound, nats a step", f"{options.num_samples} importance samples", "standard error"], rows))


if __name__ == "__main__":
    main()
