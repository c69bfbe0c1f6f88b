"""The bank that verdicts are measured on: its truth is the truth, its rates add up, its exact draws are exact."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.posteriordb.database import Posterior
from benchmarks.verdict_bank import __main__ as bank
from benchmarks.verdict_bank.cells import khat_of, run_posterior, subject
from benchmarks.verdict_bank.exact import CONJUGATE, EXACT
from benchmarks.verdict_bank.report import (
    Rate,
    false_alarm,
    false_trust,
    khat_false_alarm,
    khat_false_trust,
    report,
    weighting_false_trust,
)
from benchmarks.verdict_bank.truth import Known, Truth, judged, measure
from inference import AutoVI, Verdict, fit
from inference.density import Density
from inference.diagnostics import moments
from inference.isolation import isolated
from inference.quantities import quantities
from inference.sites import read_sites
from inference.verdict import VerdictKind
from tests.handmade_fits import chain_fit, gaussian_vi, normal, sites


@pytest.fixture(scope="module")
def known():
    draws = sites(np.random.default_rng(5).normal(size=(4, 5000, 6)))
    return Known.of(Posterior("normal", {}, draws, {}))


ONE = np.arange(6) == 3


@pytest.mark.parametrize(
    ("error", "truth"),
    [
        ({}, Truth.RIGHT),
        ({"shift": 0.05 * ONE}, Truth.RIGHT),
        ({"shift": 0.18 * ONE}, Truth.GREY),
        ({"shift": 0.35 * ONE}, Truth.WRONG),
        ({"sd": 1.17**ONE}, Truth.GREY),
        ({"sd": 1.4**ONE}, Truth.WRONG),
        ({"sd": 0.7**ONE}, Truth.WRONG),
    ],
)
def test_draws_are_right_grey_or_wrong_by_their_errors(known, error, truth):
    measured = measure(gaussian_vi(0, **error), known)
    assert measured.truth is truth
    assert measured.keeps(Verdict(VerdictKind.TRUST, "")) is truth
    assert measured.keeps(Verdict(VerdictKind.TRUST_REWEIGHTED, "")) is Truth.RIGHT  # k-hat is small in all of them
    assert measured.keeps(Verdict(VerdictKind.CANNOT_TELL, "")) is None


def test_a_verdict_is_held_to_what_it_vouches_for(known):
    measured = measure(gaussian_vi(0, sd=1.4**ONE), known)
    named = Verdict(VerdictKind.SOME_PARAMETERS, "", usable=("mu", "theta[0]"))
    assert measured.keeps(named) is Truth.RIGHT
    assert measured.keeps(Verdict(VerdictKind.SOME_PARAMETERS, "", usable=("mu", "theta[2]"))) is Truth.WRONG
    assert measured.keeps(Verdict(VerdictKind.MEANS_ONLY, "")) is Truth.RIGHT
    off = measure(gaussian_vi(0, shift=0.5 * ONE), known)
    assert off.keeps(Verdict(VerdictKind.MEANS_ONLY, "")) is Truth.WRONG


def test_chains_that_have_not_answered_are_not_right(known):
    x = normal(1)
    for t in range(1, 1000):
        x[:, t] = 0.995 * x[:, t - 1] + np.sqrt(1 - 0.995**2) * x[:, t]
    assert measure(chain_fit(sites(x)), known).truth is not Truth.RIGHT


def test_published_moments_are_a_reference_too():
    model, data, posterior = subject("", "beta_binomial")
    result = fit(model, data, AutoVI(), seed=0, progress=False)
    assert measure(result, Known.of(posterior)).truth is Truth.RIGHT
    assert khat_of(result) < 0.7
    narrow = {"probability": 0.5 * (result.draws["probability"] + posterior.moments["probability"].mean)}
    assert judged(Known.of(posterior).errors(*_moved(result, narrow))) is Truth.WRONG


def _moved(result, draws):
    found = quantities(replace(result, draws=draws))
    return found, moments(found.draws, independent=True)


def stein(name, draws, *, stretched=1.0):
    """Means and errors of g (D,) and of D + x g, g the gradient of the log density: zero over its own draws (Stein)."""
    with isolated(0):
        density = Density(read_sites(EXACT[name].model, {}))
        points, _ = density.unconstrain(draws)
        points = stretched * points[np.isfinite(points).all(axis=1)]
        gradients = density.grad(points)[1]
    both = np.column_stack([gradients, (1.0 + points * gradients).sum(axis=1)])
    return both.mean(axis=0), both.std(axis=0) / np.sqrt(len(both))


@pytest.mark.parametrize("name", EXACT)
def test_exact_draws_are_draws_from_the_model(name):
    draws = EXACT[name].draw(np.random.default_rng(0), 1000)
    mean, error = stein(name, draws)
    assert (np.abs(mean) < 5.0 * error).all()
    mean, error = stein(name, draws, stretched=1.5)
    assert (np.abs(mean) > 5.0 * error).any()


def row(truth, verdict, *, weighted=None, khat=0.5, kept=None, method="vi", name="normal_mean", kind="laplace"):
    return {
        "posterior": name,
        "fit": kind,
        "truth": truth,
        "verdict": verdict,
        "kept": kept,
        "khat": khat,
        "method": method,
        "weighted_truth": weighted,
        "worst": "mean of x +0.50 ± 0.01",
        "worst_weighted": "",
        "reason": "Because.",
        "check_seconds": 0.1,
    }


ROWS = [
    row("right", "TRUST", kept="right"),
    row("right", "CANNOT_TELL", khat=0.9),
    row("right", "TRUST", kept="right", khat=None, method="mcmc"),
    row("grey", "CANNOT_TELL"),
    row("wrong", "TRUST", kept="wrong"),
    row("wrong", "TRUST_REWEIGHTED", kept="right", weighted="right"),
    row("wrong", "DO_NOT_TRUST", khat=None),
    row("right", "TRUST_REWEIGHTED", kept="wrong"),
    {"posterior": "normal_mean", "fit": "laplace", "failed": "InputError: no"},
    {"posterior": "normal_mean", "fit": "reference, one mode", "skipped": "it has one mode"},
]


def test_rates_count_what_they_say():
    done = [row for row in ROWS if "truth" in row]
    assert false_trust(done) == Rate(2, 4)
    assert false_alarm(done) == Rate(1, 4)
    assert khat_false_trust(done) == Rate(2, 3)
    assert weighting_false_trust(done) == Rate(1, 3)
    assert khat_false_alarm(done) == Rate(1, 3)
    low, high = Rate(
        2, 4
    ).interval  # Wilson's, by hand: centre .5, half width 1.96 sqrt(4 * .25 + .9604) / (4 + 3.8416)
    assert (low, high) == pytest.approx((0.5 - 0.34998, 0.5 + 0.34998), abs=1e-4)


def test_the_report_has_every_number_and_every_false_trust():
    text = report(ROWS)
    assert "8 pairs of 1 posteriors" in text
    assert "2 of 4: 50.0%" in text
    assert text.count("mean of x +0.50") == 1  # the weighted one has no such error
    assert "1 fits failed" in text
    assert "normal_mean, laplace: InputError: no" in text


def test_finished_pairs_are_not_run_again(tmp_path: Path, monkeypatch):
    asked = []

    def pretend(path, name, kinds):
        asked.append((name, tuple(kinds)))
        return [{"posterior": name, "fit": kind} for kind in kinds]

    monkeypatch.setattr(bank, "run_posterior", pretend)
    keys, file = [("a", "laplace"), ("a", "svi normal"), ("b", "laplace")], tmp_path / "rows.jsonl"
    first = bank.run(tmp_path, keys[:2], file, jobs=1, again=False)
    assert bank.run(tmp_path, keys, file, jobs=1, again=False)[:2] == first
    assert asked == [("a", ("laplace", "svi normal")), ("b", ("laplace",))]
    assert len([json.loads(line) for line in file.read_text().splitlines()]) == 3


def test_one_pair_of_each_kind_of_reference_runs():
    kinds = ("laplace", "gaussian, narrow", "reference, wide", "reference, one mode")
    rows = {row["fit"]: row for row in run_posterior("", "gaussian, D = 2, correlation -.8", kinds)}
    assert rows["laplace"]["verdict"] == "TRUST"
    assert rows["laplace"]["truth"] == "right"
    assert rows["gaussian, narrow"]["truth"] == rows["reference, wide"]["truth"] == "wrong"
    assert rows["reference, wide"]["verdict"] == "TRUST_REWEIGHTED"
    assert rows["reference, one mode"]["skipped"]
    moments_only = list(run_posterior("", CONJUGATE[0], ("reference, wide",)))
    assert moments_only[0]["skipped"]
