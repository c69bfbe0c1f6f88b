"""Digits with ten labels a class: a semi-supervised variational autoencoder beside a network with the labels alone.

    python -m benchmarks.semi_supervised [--seeds 5] [--epochs 200]

Both classifiers have the same layers, see the same 100 labels, and are judged on the last 297 digits. The network is
trained with several weight decays, and the best of these on the test digits is shown: an advantage for it.
"""

import argparse
import time

import numpy as np
import pyro
import torch
import torch.nn.functional as F
from pyro.infer import SVI, TraceEnum_ELBO

from ppl_models import images
from ppl_models.networks import image_encoder
from ppl_models.pixels import look
from ppl_models.vae_semi_supervised import (
    HIDDEN,
    classify,
    few_labels,
    semi_supervised_vae,
    semi_supervised_vae_guide,
)

BATCH, LEARNING_RATE, WEIGHT_DECAY = 250, 2e-3, 0.1
DECAYS = (0.0, 0.1, 1.0)  # of the supervised network


def generative(digits: images.Images, labels: torch.Tensor, epochs: int, seed: int) -> float:
    """Train the autoencoder on all pictures; give the accuracy of its classifier on the test digits."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    steps = epochs * -(-len(labels) // BATCH)
    optimiser = pyro.optim.PyroLRScheduler(
        torch.optim.lr_scheduler.CosineAnnealingLR,
        {
            "optimizer": torch.optim.AdamW,
            "optim_args": {"lr": LEARNING_RATE, "weight_decay": WEIGHT_DECAY},
            "T_max": steps,
        },
    )
    svi = SVI(semi_supervised_vae, semi_supervised_vae_guide, optimiser, TraceEnum_ELBO(max_plate_nesting=1))
    for _ in range(epochs):
        for rows in torch.randperm(len(labels)).split(BATCH):
            svi.step(x=digits.train[rows], labels=labels[rows])
            optimiser.step()
    return accuracy(classify(digits.test), digits.test_labels)


def supervised(digits: images.Images, labels: torch.Tensor, decay: float, seed: int, steps: int = 500) -> float:
    """Train the classifier's network on the labelled pictures alone."""
    torch.manual_seed(seed)
    network = image_encoder((8, 8), 10, hidden=HIDDEN, activation="elu").build()
    optimiser = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=decay)
    known = labels >= 0
    x, y = look(digits.train[known], missing=False), labels[known].long()
    for _ in range(steps):
        optimiser.zero_grad()
        F.cross_entropy(network(x), y).backward()
        optimiser.step()
    with torch.no_grad():
        return accuracy(network(look(digits.test, missing=False)), digits.test_labels)


def accuracy(scores: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of pictures whose highest score is that of their label."""
    return float((scores.argmax(-1) == labels).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=200)
    given = parser.parse_args()
    torch.set_num_threads(1)
    digits = images.digits().binarised()
    labels = few_labels(digits.train_labels)
    alone = {decay: [supervised(digits, labels, decay, seed) for seed in range(given.seeds)] for decay in DECAYS}
    best = max(alone, key=lambda decay: np.mean(alone[decay]))
    print(f"labels alone (weight decay {best}): accuracy {shown(alone[best])}")
    begin = time.perf_counter()
    both = [generative(digits, labels, given.epochs, seed) for seed in range(given.seeds)]
    seconds = (time.perf_counter() - begin) / given.seeds
    print(f"semi-supervised autoencoder: accuracy {shown(both)}, {seconds:.0f} s each")


def shown(values: list[float]) -> str:
    return f"{np.mean(values):.3f} (from {min(values):.3f} to {max(values):.3f}, {len(values)} seeds)"


if __name__ == "__main__":
    main()
