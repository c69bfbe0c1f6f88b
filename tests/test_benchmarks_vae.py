"""The benchmark of autoencoders: the published schedule, the corrected mean, and a small run of it."""

import sys

import numpy as np
import pytest
import torch

from benchmarks import vae
from benchmarks.vae_likelihood import SCHEDULES, corrected_mean
from inference import SVI, fit, log_marginal
from inference.trained import own_engine
from ppl_models import MODELS, images

VAE = MODELS["vae"]


def rates(schedule, num_steps):
    """Learning rates of all steps of a schedule that starts at one."""
    adam = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler, found = SCHEDULES[schedule](num_steps)(adam), []
    for _ in range(num_steps):
        found.append(adam.param_groups[0]["lr"])
        adam.step()
        scheduler.step()
    return np.array(found)


@pytest.mark.parametrize("stretched", [1, 2])
def test_the_schedule_of_the_paper_has_eight_stages_each_three_times_as_long(stretched):
    values, counts = np.unique(rates("paper", 3280 * stretched), return_counts=True)
    np.testing.assert_allclose(values[::-1], [10 ** (-i / 7) for i in range(8)])
    assert counts[::-1].tolist() == [stretched * 3**i for i in range(8)]


def test_the_cosine_falls_from_one_to_nothing():
    found = rates("cosine", 100)
    assert found[0] == 1
    assert found[50] == pytest.approx(0.5)
    assert 0 < found[-1] < 1e-3
    assert (np.diff(found) < 0).all()


def test_the_mean_of_all_pictures_is_corrected_by_the_draws_of_some():
    digits = images.digits().binarised()
    settings = {"num_latents": 3, "hidden": (20,)}
    engine = SVI(guide=VAE.guide, batch_size=250, num_epochs=20, lr=0.01, num_samples=4, num_chains=1)
    trained = fit(VAE, {"x": digits.train, **settings}, engine, seed=0, progress=False)
    test = {"x": digits.test, **settings}
    whole = log_marginal(trained, test, num_samples=2000, seed=2)
    value, error, _ = corrected_mean(trained, test, 50, 2000)
    assert abs(value - whole.mean) < 4.5 * np.hypot(error, whole.mean_se)
    some = log_marginal(trained, test, rows=50, num_samples=2000, seed=2)
    assert abs(some.mean - whole.mean) > 4.5 * np.hypot(error, whole.mean_se)  # some pictures alone say less
    assert corrected_mean(trained, test, 297, 200)[0] == log_marginal(trained, test, num_samples=200).mean


def test_a_small_run_reports_a_bound_and_a_likelihood_above_it(tmp_path, capsys, monkeypatch):
    generator = np.random.default_rng(0)
    kinds = generator.integers(0, 256, size=(3, 28, 28))
    arrays = {"train": kinds[generator.integers(3, size=1200)], "test": kinds[generator.integers(3, size=40)]}
    file = {f"{part}_images": x.astype(np.uint8) for part, x in arrays.items()}
    file |= {f"{part}_labels": np.zeros(len(x), np.uint8) for part, x in arrays.items()}
    np.savez(tmp_path / "mnist.npz", **file)
    options = ["--epochs", "3", "--batch-size", "20", "--rows", "10", "--num-samples", "200"]
    out = tmp_path / "page.md"
    monkeypatch.setattr(
        sys, "argv", ["vae", "--section", "mnist", "--data", str(tmp_path / "mnist.npz"), *options, "--out", str(out)]
    )
    vae.main()
    text = capsys.readouterr().out
    row = next(line for line in text.splitlines() if "86.76" in line).split("|")[2:]
    value, error, bound = (float(cell) for cell in row[:3])
    assert 0 < error < 10
    assert value < bound + 3 * error
    assert value < 543  # a fair coin for each of the 784 pixels
    assert "30 steps (3.0 epochs of 200 pictures" in text
    assert text.strip() in out.read_text()
    assert "<!-- begin vae mnist -->" in out.read_text()


@pytest.mark.slow
def test_the_settings_of_the_command_line_reach_17_nats_on_the_test_digits():
    trained = fit(VAE, VAE.data(), own_engine(VAE), seed=0, progress=False)
    score = log_marginal(trained, VAE.held_out().data, num_samples=1000)
    assert -score.mean + 4.5 * score.mean_se < 17.0
    assert -score.mean > 16.0  # nobody does so well: a bound above the truth would
    few = fit(VAE, VAE.data(), own_engine(VAE, num_epochs=10), seed=0, progress=False)
    assert -log_marginal(few, VAE.held_out().data, num_samples=1000).mean > 17.5  # control
