"""The benchmark of mixtures and hidden Markov models: both sides solve one problem, and ratios are of what they say."""

import sys

import numpy as np
import pytest

from benchmarks import mixtures_hmm, mixtures_hmm_work
from benchmarks.check import TOLERANCE, largest_difference, pyro_density
from benchmarks.models import LARGE, mixture_2d_case

SMALL = {"rows": 2000, "apart": 5.0, "covariance": "diagonal", "seed": 1, "max_iter": 200}


@pytest.mark.parametrize("case", [mixture_2d_case(50), LARGE["hmm-3x500"]], ids=lambda case: case.name)
def test_models_have_the_density_of_the_closed_form(case):
    assert largest_difference(case, pyro_density) < TOLERANCE


def test_likelihoods_of_a_chain_agree():
    settings = {"T": 300, "K": 4, "repeats": 2}
    ours, other = mixtures_hmm_work.chain_ours(settings), mixtures_hmm_work.chain_hmmlearn(settings)
    assert ours["log_likelihood"] == pytest.approx(other["log_likelihood"], rel=1e-10)
    assert ours["note"] in ("native", "graph")


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_point_estimates_of_both_sides_have_the_likelihood_of_one_maximum(covariance):
    """From the first seeds at which they find it: a single start may end in a lesser one."""
    ours = mixtures_hmm_work.point_ours({**SMALL, "covariance": covariance})
    theirs = [mixtures_hmm_work.point_sklearn({**SMALL, "covariance": covariance, "seed": seed}) for seed in range(4)]
    best = max(theirs, key=lambda run: run["log_likelihood"])
    assert ours["log_likelihood"] == pytest.approx(best["log_likelihood"], abs=0.1)
    lines = mixtures_hmm.point_lines("any", {"ours": [ours], "sklearn": theirs})
    assert [line[1] for line in lines] == ["ours", "sklearn", "sklearn by itself"]
    assert lines[0][2] == "1 of 1"


def _run(level, seconds, **more):
    return {"log_likelihood": level, "seconds": seconds, "cpu": seconds / 2, **more}


def test_ratios_are_over_the_runs_that_reached_the_best():
    default = {"log_likelihood": -130.0, "seconds": 0.5, "cpu": 0.5, "its": 3}
    found = {
        "ours": [_run(-100.0, s, gradients=9, first=9.0) for s in (3.0, 4.0, 5.0)],
        "sklearn": [_run(level, s, iterations=7, default=default) for level, s in ((-100.5, 2.0), (-900.0, 50.0))],
    }
    ours, theirs, alone = mixtures_hmm.point_lines("any", found)
    assert (ours[2], theirs[2]) == ("3 of 3", "1 of 2")
    assert (ours[4], theirs[4], ours[6]) == ("4.00", "2.00", "2.00")
    assert alone[3].startswith("30")


def test_peers_that_are_absent_are_left_out_and_failures_named():
    runner = mixtures_hmm.Runner(pythons={"ours": "false"}, cache="/nonexistent", limit=20.0, quick=True, repeats=2)
    text = mixtures_hmm.report(runner, ["memory", "chain"], ["full"], None)
    assert "sklearn" not in text
    assert text.count("chain, ours") == 2
    pythons, absent = mixtures_hmm.available({"dynamax": "false"})
    assert "dynamax" in absent
    assert pythons["ours"] == sys.executable


def test_clusters_are_as_far_apart_as_said():
    near, far = (mixtures_hmm_work.clusters(2000, apart, "full") for apart in (1.0, 4.0))
    assert np.var(far) > 5 * np.var(near)
