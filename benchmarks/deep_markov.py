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


def train(parts: dict[str, Part], settings: dict[str, int], options: argparse.Namespace) -> list[tuple[float, ...]]:
    """Train until the time is up, and leave the parameters of the best validation bound in Pyro's store.

    Returns the curve: epoch, minutes, negative ELBO per step in training (its last epoch) and validation.
    """
    elbo, steps = TraceMeanField_ELBO(), parts["train"][1].sum().item()
    store = pyro.get_param_store()
    elbo.loss(MODEL.model, MODEL.guide, **batch(parts["train"], torch.arange(1), settings))  # makes the parameters
    weights = [store[name].unconstrained() for name in store]
    adam = torch.optim.Adam(weights, lr=options.lr, betas=BETAS, weight_decay=options.weight_decay)
    begin, epoch, best, curve = time.process_time(), 0, (math.inf, store.get_state()), []
    while True:
        share = (time.process_time() - begin) / (60 * options.minutes)
        if share >= 1:
            break
        for group in adam.param_groups:  # falls to a hundredth over the last half
            group["lr"] = options.lr * 0.01 ** max(0.0, 2 * share - 1)
        kl_weight = min(1.0, FIRST_KL_WEIGHT + (1 - FIRST_KL_WEIGHT) * share / options.annealed)
        guide, total = poutine.scale(MODEL.guide, scale=kl_weight), 0.0
        for rows in torch.randperm(len(parts["train"][0])).split(options.batch_size):
            loss = elbo.differentiable_loss(MODEL.model, guide, **batch(parts["train"], rows, settings))
            adam.zero_grad()
            (loss / len(rows)).backward()
            torch.nn.utils.clip_grad_norm_(weights, CLIP_NORM)
            adam.step()
            total += loss.item()
        epoch += 1
        if epoch % options.every == 0:
            valid = bound(parts["valid"], settings)
            curve.append((epoch, (time.process_time() - begin) / 60, total / steps, valid))
            print(
                "epoch {:5.0f}  {:5.1f} min  train {:.3f} (KL weight {:.2f})  valid {:.3f}".format(
                    *curve[-1][:3], kl_weight, valid
                ),
                flush=True,
            )
            if valid < best[0]:
                best = (
                    valid,
                    {
                        n: {k: w.detach().clone() for k, w in v.items()} if n == "params" else v
                        for n, v in store.get_state().items()
                    },
                )
    store.set_state(best[1])
    return curve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="JSON file of the chorales")
    parser.add_argument("--minutes", type=float, default=30.0, help="of one core's time, for training")
    parser.add_argument("--num-latents", type=int, default=64)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--rnn-hidden", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=20)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--weight-decay", type=float, default=0.0)
    parser.add_argument("--annealed", type=float, default=0.2, help="share of the time until the KL counts fully")
    parser.add_argument("--num-samples", type=int, default=500, help="of importance sampling")
    parser.add_argument("--every", type=int, default=10, help="epochs between two looks at the validation part")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_default_dtype(torch.float32)
    pyro.enable_validation(False)
    pyro.set_rng_seed(options.seed)
    pyro.clear_param_store()
    settings = {name: getattr(options, name) for name in ("num_latents", "hidden", "rnn_hidden")}
    parts = {}
    for name in ("train", "valid", "test"):
        x, lengths = jsb_chorales(options.path, name)
        parts[name] = x.float(), lengths
    curve = train(parts, settings, options)
    print(f"\n{described()} {torch.get_num_threads()} threads; {options.minutes:g} minutes, {curve[-1][0]} epochs.\n")
    rows = []
    for name, part in parts.items():
        estimate, error = importance_sampled(part, settings, options.num_samples)
        rows.append([name, f"{bound(part, settings):.3f}", f"{estimate:.3f}", f"{error:.4f}"])
    print(markdown(["part", "bound, nats a step", f"{options.num_samples} importance samples", "standard error"], rows))


if __name__ == "__main__":
    main()
