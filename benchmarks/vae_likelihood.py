"""How probable autoencoders find pictures that they have not seen: MNIST as in Burda et al. (2016), and the digits."""

import argparse
import math
import sys
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.optim.lr_scheduler import LambdaLR

from benchmarks.tables import markdown
from inference import SVI, Fit, fit, log_marginal
from inference.trained import own_engine
from ppl_models import MODELS, images

VAE = MODELS["vae"]
# Section 5 of Burda et al.: one stochastic layer, and negative log-likelihoods of its table 1.
PAPER = {"num_latents": 50, "hidden": (200, 200), "activation": "tanh"}
PUBLISHED = {1: 86.76, 50: 84.78}
# Their schedule: 3^i passes at the rate 0.001 10^(-i/7), i = 0, ..., 7; and their Adam.
PASSES = [3**i for i in range(8)]
FIRST_RATE, ADAM_EPS = 1e-3, 1e-4
# Training pictures that show how far it has come, and choose nothing but the best of these bounds.
NUM_VALIDATION = 1000
# All test pictures are scored by so few draws, and some of them by all draws: the difference corrects the mean.
FEW_SAMPLES = 100
# Batches from whose time the number of epochs follows: of a short and of a longer run.
TIMED = (20, 120)
DRAWS = {"num_samples": 4, "num_chains": 1}


def cosine(num_steps: int) -> Callable[[torch.optim.Optimizer], LambdaLR]:
    """Let the rate fall to zero along half a cosine."""
    return lambda adam: LambdaLR(adam, lambda step: 0.5 + 0.5 * math.cos(math.pi * min(1.0, step / num_steps)))


def paper(num_steps: int) -> Callable[[torch.optim.Optimizer], LambdaLR]:
    """Let the rate fall as in the paper, whose 3280 passes are stretched over the steps."""
    ends = np.cumsum(PASSES)

    def factor(step: int) -> float:
        stage = int(np.searchsorted(ends, step / num_steps * ends[-1], side="right"))
        return 10 ** (-min(stage, len(PASSES) - 1) / 7)

    return lambda adam: LambdaLR(adam, factor)


SCHEDULES = {"cosine": cosine, "paper": paper}


def objective(k: int) -> dict[str, Any]:
    """Give the options of `SVI` for the bound of k draws: of one, with the KL in closed form."""
    return {"elbo": "trace_mean_field"} if k == 1 else {"elbo": "iw", "num_particles": k}


def train_mnist(x: torch.Tensor, options: argparse.Namespace, num_steps: int, validation: Any = None) -> Fit:
    """Train on grey levels (N, 28, 28), binarised anew at each step."""
    engine = SVI(
        guide=VAE.guide,
        batch_size=options.batch_size,
        num_steps=num_steps,
        optimizer=partial(torch.optim.Adam, eps=ADAM_EPS if options.schedule == "paper" else 1e-8),
        lr=options.lr,
        lr_schedule=SCHEDULES[options.schedule](num_steps),
        validation=validation,
        device=options.device,
        **objective(options.k),
        **DRAWS,
    )
    return fit(VAE, {"x": x, "dynamic": True, **PAPER}, engine, seed=options.seed, progress=options.progress)


def clock(options: argparse.Namespace) -> Callable[[], float]:
    """Choose what is limited: time of the processor, which other programs do not slow, or time where a GPU works."""
    return time.process_time if options.device == "cpu" else time.perf_counter


def steps_within(x: torch.Tensor, options: argparse.Namespace) -> int:
    """Count the steps that fit into the time limit, from a short and a longer run on a few of the pictures."""
    few, some, now = x[: options.batch_size * TIMED[0]], [], clock(options)
    for num in (2, *TIMED):
        begin = now()
        train_mnist(few, options, num)
        some.append(now() - begin)
    each = (some[2] - some[1]) / (TIMED[1] - TIMED[0])
    print(f"{1e3 * each:.2f} ms a step", file=sys.stderr, flush=True)
    return max(1, int(60 * options.minutes / each))


def corrected_mean(trained: Fit, test: dict[str, Any], rows: int, num_samples: int) -> tuple[float, float, float]:
    """Mean log p(x) over all test pictures, its Monte Carlo error with that of the correction, and the mean ELBO.

    All pictures have `FEW_SAMPLES` draws. Some, spread evenly, also have ``num_samples``; the mean difference there is
    added. It varies much less between pictures than log p(x) does.
    """
    every = log_marginal(trained, test, num_samples=FEW_SAMPLES)
    if rows >= len(every.rows):
        whole = log_marginal(trained, test, num_samples=num_samples)
        return whole.mean, whole.mean_se, whole.elbo.mean()
    some = log_marginal(trained, test, rows=rows, num_samples=num_samples, seed=1)
    gain = some.log_p - every.log_p[some.rows]
    error = math.hypot(every.mean_se * (1 - rows / len(every.rows)), gain.std(ddof=1) / math.sqrt(rows))
    return every.mean + gain.mean(), error, every.elbo.mean()


def curve(trained: Fit, per_epoch: float, num_rows: int = 20) -> str:
    """Give the bounds along the training, at epochs that grow by a constant factor."""
    steps, bound = (trained.history[f"validation_{name}"] for name in ("step", "elbo"))
    at = sorted({int(i) for i in np.geomspace(1, len(steps), num_rows).round() - 1})
    rows = [[f"{steps[i] / per_epoch:.0f}", f"{-bound[i]:.2f}"] for i in at]
    return markdown(["epoch", "minus bound, held-out training pictures"], rows)


def mnist(options: argparse.Namespace) -> str:
    """Train on MNIST in the set-up of Burda et al., and score the test pictures."""
    grey = images.mnist(options.data)
    test = {"x": grey.binarised(seed=0).test, "dynamic": False, **PAPER}
    x, held_out = grey.train[:-NUM_VALIDATION], grey.train[-NUM_VALIDATION:]
    per_epoch = math.ceil(len(x) / options.batch_size)
    num_steps = options.epochs * per_epoch if options.epochs else steps_within(x, options)
    begin = time.perf_counter(), time.process_time()
    trained = train_mnist(x, options, num_steps, {"x": held_out})
    wall, cpu = time.perf_counter() - begin[0], time.process_time() - begin[1]
    found, error, elbo = corrected_mean(trained, test, options.rows, options.num_samples)
    lead = (
        f"{PAPER['num_latents']} latents, 2 x 200 tanh, bound of k = {options.k} draws, batches of "
        f"{options.batch_size}, Adam with rate {options.lr:g}, {options.schedule} schedule, {num_steps} steps "
        f"({num_steps / per_epoch:.1f} epochs of {len(x)} pictures, binarised anew at each step), on "
        f"{trained.state['backend']}, {torch.get_num_threads()} thread(s): {wall / 60:.1f} minutes, "
        f"{cpu / 60:.1f} of a processor. {trained.status.message}"
    )
    scored = (
        f"Test: {len(test['x'])} pictures, binarised once (seed 0), {FEW_SAMPLES} draws for each and "
        f"{options.num_samples} for {min(options.rows, len(test['x']))} of them, whose mean gain is added for all."
    )
    published = PUBLISHED.get(options.k)
    header = ["k", "nats a picture", "standard error", "minus ELBO", "Burda et al. (2016), 3280 epochs"]
    row = [str(options.k), f"{-found:.2f}", f"{error:.3f}", f"{-elbo:.2f}", f"{published}" if published else ""]
    parts = ["### MNIST", lead, scored, markdown(header, [row]), curve(trained, per_epoch)]
    return "\n\n".join(parts)


def digits(options: argparse.Namespace) -> str:
    """Train on scikit-learn's digits by the settings of ``ppl compare vae``, with several seeds."""
    pictures = images.digits().binarised()
    rows = []
    for seed in range(options.seeds):
        begin = time.perf_counter(), time.process_time()
        trained = fit(VAE, {"x": pictures.train}, own_engine(VAE), seed=seed, progress=options.progress)
        wall, cpu = time.perf_counter() - begin[0], time.process_time() - begin[1]
        score = log_marginal(trained, {"x": pictures.test}, num_samples=options.num_samples, seed=seed)
        elbo = f"{-score.elbo.mean():.3f}"
        rows.append([str(seed), f"{-score.mean:.3f}", f"{score.mean_se:.3f}", elbo, f"{wall:.1f}", f"{cpu:.1f}"])
        print(rows[-1], file=sys.stderr, flush=True)
    found = [float(row[1]) for row in rows]
    lead = (
        f"Settings of `ppl compare vae`, {options.seeds} seeds, {options.num_samples} importance samples, 297 test "
        f"pictures: median {median(found):.2f} nats, from {min(found):.2f} to {max(found):.2f}."
    )
    header = ["seed", "nats a picture", "standard error", "minus ELBO", "seconds", "of a processor"]
    return f"### Digits\n\n{lead}\n\n{markdown(header, rows)}"
