"""Fits against reference posteriors that nobody here made (posteriordb: 10 000 thinned draws of Stan each)."""

import json
import subprocess
import sys
import zipfile
from dataclasses import replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest

from benchmarks.posteriordb import BEYOND_NUTS, PORTS, cell
from benchmarks.posteriordb.__main__ import read_results, run
from benchmarks.posteriordb.accuracy import accuracy
from benchmarks.posteriordb.cell import arguments, run_cell
from benchmarks.posteriordb.database import joined, open_database
from benchmarks.posteriordb.report import report
from inference import NUTS, check, fit, from_draws
from inference.errors import InputError
from inference.native.compiler import find_compiler
from inference.verdict_kinds import VerdictKind
from tests.accuracy import SIGMAS, standard_errors

# One of each kind, and one of which only moments are published.
SLICE = (
    "eight_schools-eight_schools_noncentered",
    "low_dim_gauss_mix-low_dim_gauss_mix",
    "hmm_example-hmm_example",
    "arK-arK",
    "mesquite-logmesquite_logvas",
    "M0_data-M0_model",
)
SCHOOLS = SLICE[0]

# They would pass without one, in an hour.
needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="there is no C++ compiler here")


@pytest.fixture(scope="module")
def bundle(shared):
    return shared / "posteriordb"


# --- Reading --------------------------------------------------------------------------------------------------------


def test_every_posterior_has_a_port_and_every_port_a_posterior(bundle):
    assert set(open_database(bundle).folders) == set(PORTS)


@pytest.mark.parametrize("name", PORTS)
def test_data_fit_the_port_and_shapes_fit_the_moments(name, bundle):
    posterior = open_database(bundle).posterior(name)
    assert set(arguments(PORTS[name], posterior)) <= set(posterior.data)
    info = json.loads((open_database(bundle).folders[name] / "info.json").read_text())
    assert posterior.dimension == info["n_params"]
    for site, shape in posterior.shapes.items():
        flat = [f"{site}[{','.join(str(i + 1) for i in index)}]" if index else site for index in np.ndindex(shape)]
        published = [info["reference"][key]["mean"] for key in flat]
        found = posterior.draws[site].mean((0, 1)) if posterior.draws else posterior.moments[site].mean
        np.testing.assert_allclose(found.ravel(), published, rtol=1e-4, atol=1e-6)


def test_a_checkout_of_posteriordb_reads_like_the_bundle(bundle, tmp_path):
    expected = open_database(bundle).posterior(SCHOOLS)
    root = tmp_path / "posteriordb" / "posterior_database"
    for folder in ("posteriors", "data/data", "reference_posteriors/draws/draws"):
        (root / folder).mkdir(parents=True)
    entry = {"data_name": "eight_schools", "reference_posterior_name": SCHOOLS}
    (root / "posteriors" / f"{SCHOOLS}.json").write_text(json.dumps(entry))
    (root / "posteriors" / "other.json").write_text(json.dumps(entry | {"reference_posterior_name": None}))
    chains = [
        {
            **{f"theta[{i + 1}]": expected.draws["theta"][c, :, i].tolist() for i in range(8)},
            **{site: expected.draws[site][c].tolist() for site in ("mu", "tau")},
        }
        for c in range(10)
    ]
    for path, content in (
        (f"data/data/{entry['data_name']}", expected.data),
        (f"reference_posteriors/draws/draws/{SCHOOLS}", chains),
    ):
        with zipfile.ZipFile(root / f"{path}.json.zip", "w") as archive:
            archive.writestr(f"{path.rsplit('/')[-1]}.json", json.dumps(content))
    for path in (root, root.parent):
        database = open_database(path)
        found = database.posterior(SCHOOLS)
        assert found.data == expected.data
        for site, value in expected.draws.items():
            np.testing.assert_array_equal(found.draws[site], value)
        with pytest.raises(InputError, match="no reference draws"):
            database.posterior("other")


def test_flat_names_become_arrays():
    chains = [{"x": [0.0, 1.0], "A[1,2]": [12.0, 12.5], "A[1,1]": [11.0, 11.5]}]
    found = joined(chains)
    np.testing.assert_array_equal(found["x"], [[0.0, 1.0]])
    np.testing.assert_array_equal(found["A"], [[[[11.0, 12.0]], [[11.5, 12.5]]]])


def test_what_is_not_there_is_named(bundle, tmp_path):
    with pytest.raises(InputError, match=r"expected a folder with index\.json"):
        open_database(tmp_path)
    with pytest.raises(InputError, match="posterior 'nothing'"):
        open_database(bundle).posterior("nothing")


# --- Fitting --------------------------------------------------------------------------------------------------------


@needs_compiler
@pytest.mark.parametrize("name", SLICE)
def test_nuts_passes(name, bundle):
    row = run_cell(str(bundle), name, "nuts", 0)
    assert "failed" not in row, row.get("failed")
    assert row["backend"] == "nutpie, native density", row["notes"]
    assert row["passes"], row
    assert row["verdict"] != "DO_NOT_TRUST", row["reason"]  # an R-hat a little above 1.01 is within its noise
    assert row["mean_se"] < 0.1, "too few effective draws for this check to mean anything"
    if "joint" in row:
        assert row["joint"] < 2 * row["joint_expected"]


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("name", PORTS)
def test_nuts_passes_wherever_it_can(name, bundle):
    row = run_cell(str(bundle), name, "nuts", 1)
    assert "failed" not in row, row.get("failed")
    assert row["backend"] == "nutpie, native density", row["notes"]
    if name in BEYOND_NUTS:
        assert row["verdict"] != "TRUST"
    else:
        assert row["passes"], row


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("engine", ["svi:normal", "svi:multivariate_normal", "laplace", "auto"])
@pytest.mark.parametrize("name", PORTS)
def test_every_engine_runs_everywhere(name, engine, bundle):
    """Right or wrong: a fit comes back, and a wrong one is not trusted."""
    row = run_cell(str(bundle), name, engine, 1)
    if (name, engine) == ("eight_schools-eight_schools_centered", "laplace"):
        assert "no maximum" in row["failed"]  # of a funnel
        return
    assert "failed" not in row, row.get("failed")
    assert row["verdict"] != "TRUST" or row["passes"], row


def schools_with_doubled_priors(y, sigma):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    tau = pyro.sample("tau", dist.HalfCauchy(10.0))
    with pyro.plate("schools", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * z)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


@needs_compiler
def test_a_wrong_port_is_flagged_by_the_same_table(bundle, monkeypatch):
    monkeypatch.setitem(PORTS, SCHOOLS, schools_with_doubled_priors)
    row = run_cell(str(bundle), SCHOOLS, "nuts", 0)
    assert not row["passes"]
    assert row["joint"] > 2 * row["joint_expected"]
    assert f"{SCHOOLS} does not pass" in report([row])


def test_a_wrong_answer_to_published_moments_is_flagged(bundle):
    posterior = open_database(bundle).posterior("M0_data-M0_model")
    rng = np.random.default_rng(0)
    draws = {
        site: published.mean + published.sd * rng.normal(size=(4, 1000))
        for site, published in posterior.moments.items()
    }
    assert accuracy(from_draws(draws, independent=True), posterior).passes
    for wrong in ({"p": draws["p"] + 0.2 * draws["p"].std()}, {"p": draws["p"].mean() + 1.25 * (draws["p"] - 0.5)}):
        found = accuracy(from_draws(draws | wrong, independent=True), posterior)
        assert not found.passes
        assert "p" in (found.mean_at, found.sd_at)


def test_chains_that_hardly_move_do_not_pass(bundle):
    """The tolerance grows with the Monte Carlo error, but not without bound."""
    posterior = open_database(bundle).posterior("M0_data-M0_model")
    rng = np.random.default_rng(0)
    stuck = {
        site: published.mean + published.sd * np.repeat(rng.normal(size=(4, 10)), 100, axis=1)
        for site, published in posterior.moments.items()
    }
    assert not accuracy(from_draws(stuck), posterior).passes


@needs_compiler
def test_centred_eight_schools_diverge_and_say_so(bundle):
    name = "eight_schools-eight_schools_centered"
    posterior = open_database(bundle).posterior(name)
    engine = NUTS(num_warmup=400, num_samples=700, num_chains=8)  # chains that stick in the neck differ a lot
    result = fit(PORTS[name], arguments(PORTS[name], posterior), engine, seed=1)
    assert result.stats["diverging"].sum() > 0
    verdict = check(result)
    assert verdict.kind is not VerdictKind.TRUST
    assert "diverg" in str(verdict)
    for site in ("mu", "theta"):  # the neck of the funnel is missed, so only a rough agreement can be asked
        reference = posterior.draws[site]
        assert np.all(np.abs(result.draws[site].mean((0, 1)) - reference.mean((0, 1))) < 0.5 * reference.std((0, 1)))


@needs_compiler
def test_chains_leave_modes_without_mass_alone(bundle):
    """Where chains begin far below this posterior, one in ten ends in a mode 60 nats lower and stays."""
    name = "bball_drive_event_0-hmm_drive_0"
    posterior = open_database(bundle).posterior(name)
    result = fit(
        PORTS[name], arguments(PORTS[name], posterior), NUTS(num_warmup=300, num_samples=200, num_chains=16), seed=0
    )
    reference = posterior.draws["lambda"]
    far = np.abs(result.draws["lambda"].mean(1) - reference.mean((0, 1))) > 3 * reference.std((0, 1))
    assert not far.any()
    error, _ = standard_errors(result.draws["lambda"])
    assert np.all(np.abs(result.draws["lambda"].mean((0, 1)) - reference.mean((0, 1))) < SIGMAS * 1.2 * error)


# --- The table ------------------------------------------------------------------------------------------------------


def test_finished_cells_are_kept_and_failing_ones_are_rows(bundle, tmp_path, monkeypatch):
    calls = []

    def fitted(model, data, engine, **options):
        calls.append(model.__name__)
        if model is PORTS["arK-arK"]:
            raise FloatingPointError("on purpose")
        return fit(model, data, replace(engine, num_warmup=300, num_samples=400), **options)

    monkeypatch.setattr(cell, "fit", fitted)
    results = tmp_path / "new" / "cells.jsonl"
    keys = [("M0_data-M0_model", "nuts", 0), ("arK-arK", "nuts", 0)]
    rows = run(bundle, keys, results, jobs=1, again=False)
    assert calls == ["capture_recapture", "ar_k"]
    assert rows == run(bundle, keys, results, jobs=1, again=False)
    assert len(calls) == 2
    assert list(read_results(results)) == keys
    assert rows[1]["failed"].startswith("FloatingPointError: on purpose")
    text = report(rows)
    assert "failed: FloatingPointError: on purpose" in text
    assert "| nuts | 1 of 2 |" in text
    run(bundle, keys[1:], results, jobs=1, again=True)
    assert len(calls) == 3


def test_the_command_refuses_what_it_cannot_run(bundle, tmp_path):
    def refused(*options):
        command = [sys.executable, "-m", "benchmarks.posteriordb", "--database", str(bundle), *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        return done.stderr

    assert "no ported posterior" in refused("--only", "nothing*")
    assert "engine 'mcmc': not known" in refused("--engine", "nuts,mcmc")
    assert "no reference posteriors" in refused("--database", str(tmp_path))


def test_shapes_of_numbers_in_the_table(bundle):
    row = run_cell(str(bundle), "M0_data-M0_model", "laplace", 0)
    assert "rhat" not in row
    assert row["quantile"] is None
    assert "| M0_data-M0_model | 2 |" in report([row])
