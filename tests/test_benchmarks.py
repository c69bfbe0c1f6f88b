"""The benchmarks measure what they say: the right densities, and tables that add up. Nothing is timed here."""

import json
import sys
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest

from benchmarks import command, machine, nuts, peers, svi, tables
from benchmarks.check import TOLERANCE, largest_difference, pyro_density
from benchmarks.measure import Bench, compared, differences, flat
from benchmarks.models import CASES, hmm_case, logistic_case, mixture_2d_case
from benchmarks.peers.run import Settings
from benchmarks.tables import Measured

MODELS = [*CASES.values(), logistic_case(50, 3), hmm_case(4, 20), mixture_2d_case(50)]


@pytest.mark.parametrize("case", MODELS, ids=lambda case: case.name)
def test_pyro_model_has_the_density_of_the_closed_form(case):
    assert largest_difference(case, pyro_density) < TOLERANCE


def test_another_prior_is_noticed():
    case = CASES["schools"]
    other = replace(case, log_joint=lambda values, data: case.log_joint(values, data) - 1e-4 * values["mu"] ** 2)
    assert largest_difference(other, pyro_density) > 100 * TOLERANCE


def test_data_are_the_same_at_every_call_and_plain_arrays():
    for case in CASES.values():
        first, second = case.data(), case.data()
        for name, value in first.items():
            assert value.dtype in (np.float64, np.int64)
            np.testing.assert_array_equal(value, second[name])


def test_stan_counts_from_one():
    groups = CASES["groups"]
    np.testing.assert_array_equal(groups.stan_data()["county_index"], groups.data()["county_index"] + 1)
    assert groups.stan_data()["J"] == 85


@pytest.mark.parametrize("name", ["schools", "hmm"])
def test_our_worker_gives_draws_and_counts(name):
    case = CASES[name]
    run = peers.module("ours").prepare(case, "python")(Settings(seed=1, chains=1, warmup=5, draws=4))
    example = case.draw(np.random.default_rng(0))
    assert {q: run.draws[q].shape for q in case.quantities} == {
        q: (1, 4, *np.shape(example[q])) for q in case.quantities
    }
    assert run.num_gradients >= 9
    assert 0 < run.sampling < run.total


def test_every_peer_says_what_it_requires():
    for name in peers.TITLES:
        assert callable(peers.module(name).prepare)
        assert peers.module(name).REQUIRES
    for name in svi.PEERS:
        assert callable(peers.module(name).prepare_svi)


def test_absent_peers_are_told_from_installed_ones(monkeypatch):
    assert machine.has(sys.executable, ("numpy", "torch"))
    assert not machine.has(sys.executable, ("numpy", "no_such_module"))
    monkeypatch.setattr(import_module("benchmarks.peers.with_pymc"), "REQUIRES", ("no_such_module",))
    pythons, absent = command.installed(["ours", "pymc+nutpie"], {})
    assert (list(pythons), absent) == (["ours"], ["pymc+nutpie"])


def test_results_are_reused_and_failures_kept(tmp_path):
    bench = Bench(folder=tmp_path, pythons={"ours": "false"}, limit=10.0)  # an interpreter that fails
    assert bench.run("nuts", "schools", "ours", "1", {"seed": 1})["failed"]
    facts = tmp_path / "nuts" / "schools" / "ours-1" / "facts.json"
    facts.write_text(json.dumps({"total": 3.0}))
    assert bench.run("nuts", "schools", "ours", "1", {"seed": 1}) == {"total": 3.0, "draws": {}}
    again = replace(bench, again=("ours",))
    assert again.run("nuts", "schools", "ours", "1", {"seed": 1})["failed"]


def _row(model, peer, rate, *, variant="", difference=0.0):
    numbers = {"microseconds": 1.0, "rate_with_start": rate / 2, "start": 1.0, "peak": 100.0}
    return Measured(model=model, peer=peer, variant=variant, rate=rate, difference=difference, **numbers)


def test_summary_takes_medians_and_the_best_variant():
    rows = [_row("m", "numpyro", rate, variant="parallel") for rate in (1.0, 50.0, 10.0)]
    rows += [_row("m", "numpyro", rate, variant="sequential") for rate in (9.0, 8.0, 1000.0)]
    (best,) = tables.summarise(rows).values()
    assert (best.variant, best.rate) == ("parallel", 10.0)


def test_ratios_are_to_the_best_peer_and_average_geometrically():
    rows = [_row(m, p, rate) for m, p, rate in [("a", "ours", 8.0), ("a", "stan", 2.0), ("a", "numpyro", 4.0)]]
    rows += [_row("b", "ours", 4.0), _row("b", "stan", 8.0), _row("c", "stan", 8.0)]
    values = tables.ratios(tables.summarise(rows), ["a", "b", "c"], ["stan", "numpyro"])
    np.testing.assert_array_equal(values, [2.0, 0.5, np.nan])
    assert tables.geometric_mean(values[:2]) == pytest.approx(1.0)
    assert np.isnan(tables.geometric_mean([]))


def test_tables_are_rectangular_and_leave_gaps_where_nothing_was_measured():
    summary = tables.summarise([_row("a", "ours", 8.0), _row("b", "stan", 8.0)])
    text = tables.peer_table(summary, {"a": "A", "b": "B"}, peers.TITLES, lambda row: tables.number(row.rate))
    assert text.splitlines()[2:] == ["| ours | 8.00 | – |", "| Stan | – | 8.00 |"]
    lines = tables.ratio_table(summary, {"a": "A", "b": "B"}).splitlines()
    assert {line.count("|") for line in lines} == {5}


@pytest.mark.parametrize(
    ("value", "text"), [(0.00123, "0.0012"), (3.14159, "3.14"), (31.4159, "31.4"), (31415.9, "31 416"), (None, "–")]
)
def test_numbers_have_about_three_digits(value, text):
    assert tables.number(value) == text


def _results(shift):
    rng, results = np.random.default_rng(0), {}
    for peer, offset in (("ours", 0.0), ("stan", 0.0), ("pymc+nutpie", shift)):
        draws = {"x": rng.normal(size=(4, 500, 3)) + offset, "y": rng.normal(size=(4, 500))}
        facts = {"sampling": 2.0, "total": 4.0, "num_gradients": 1000, "peak": 300.0, "note": ""}
        results["schools", peer, 1] = {**facts, "draws": draws}
    results["schools", "pyro", 1] = {"failed": "over 300 s", "draws": {}}
    return results


def test_right_samplers_agree_and_a_shifted_one_is_found():
    assert max(row.difference for row in compared(_results(0.0))) < tables.MAX_DIFFERENCE
    rows = {row.peer: row for row in compared(_results(0.3))}
    assert rows["pymc+nutpie"].difference > tables.MAX_DIFFERENCE
    assert "pymc+nutpie, schools" in " ".join(tables.disagreements(tables.summarise(rows.values())))


def test_differences_are_in_standard_errors():
    means, errors = np.array([[0.0], [3.0]]), np.array([[0.6], [0.8]])
    np.testing.assert_allclose(differences(means, errors, ["a", "b"]), 3.0)
    np.testing.assert_array_equal(differences(means, errors, ["a", "a"]), 0.0)


def test_rates_follow_from_seconds_and_the_worst_quantity():
    results = _results(0.0)
    slow = results["schools", "ours", 1]["draws"]["x"]
    slow[:, :, 1] = slow[:, :, 1].cumsum(axis=1)  # a random walk
    rows = {row.peer: row for row in compared(results)}
    assert set(rows) == {"ours", "stan", "pymc+nutpie"}
    assert rows["ours"].rate < 0.1 * rows["stan"].rate
    assert rows["stan"].rate == pytest.approx(2 * rows["stan"].rate_with_start)
    assert rows["stan"].microseconds == pytest.approx(2000.0)
    assert flat(results["schools", "stan", 1]["draws"]).shape == (4, 500, 4)


def test_variants_far_from_the_best_are_not_repeated():
    names = ["numpyro:a", "numpyro:b", "numpyro:c"]
    facts = ({"sampling": 1.0}, {"sampling": 1.4}, {"failed": "why"})
    results = {("schools", name, 1): fact for name, fact in zip(names, facts, strict=True)}
    assert nuts.worthwhile(results, "schools", names) == names[:2]
    results["schools", "numpyro:b", 1]["sampling"] = 1.6
    assert nuts.worthwhile(results, "schools", names) == names[:1]


def test_report_holds_every_table_and_the_reason_of_a_failure():
    text = nuts.report(_results(0.0), ["schools"])
    assert text.count("### ") == 7
    assert "pyro, schools, seed 1: over 300 s" in text
    assert "ours / best peer" in text


def test_svi_table_says_how_much_faster_ours_is():
    times = {("normal", "schools", "ours"): 2.0, ("normal", "schools", "pyro"): 2000.0}
    lines = svi.step_table(times, "normal", ["schools"], ["ours", "pyro"]).splitlines()
    assert lines[-2] == "| Pyro / ours | 1 000 | **1 000** |"
    assert lines[-1] == "| NumPyro / ours | – | **–** (0 of 1) |"


def test_a_document_keeps_its_prose_when_a_section_is_replaced():
    document = command.with_section("# Title\n\nProse.\n", "nuts", "old")
    document = command.with_section(document, "svi", "other")
    document = command.with_section(document, "nuts", "new")
    assert [word in document for word in ("Prose.", "new", "other", "old")] == [True, True, True, False]
    assert document.index("new") < document.index("other")
