"""Every tutorial runs to its last assertion; the examples of README and CONTRIBUTING do what is said there."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from scipy.stats import binom, halfnorm, norm

from inference import Comparison, load_fit
from tests.accuracy import assert_moments

ROOT = Path(__file__).resolve().parents[1]
TUTORIALS = sorted((ROOT / "tutorials").glob("*.py"))


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """A folder for each tutorial's output; read by the tests that come after the run."""
    return {script.stem: tmp_path_factory.mktemp(script.stem) for script in TUTORIALS}


def run_script(script, folder, **settings):
    """Run a script as a reader would, in a process of its own, with warnings as errors; give what it printed."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    environment = os.environ | {"MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1", "PYTHONPATH": path} | settings
    command = [sys.executable, "-W", "error", str(script)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def python_blocks(document):
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / document).read_text(encoding="utf-8"), re.M | re.S)
    assert blocks
    return blocks


def files_of_the_tree():
    return {path for path in ROOT.glob("tutorials/**/*") if "__pycache__" not in path.parts}


@pytest.mark.parametrize("script", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_runs_to_its_last_assertion(script, outputs):
    before = files_of_the_tree()
    printed = run_script(script, outputs[script.stem], TUTORIAL_OUT=str(outputs[script.stem]))
    assert printed
    assert list(outputs[script.stem].glob("*.png")), "a tutorial has figures"
    assert files_of_the_tree() == before, "a tutorial writes to its output folder, not into the source"


@pytest.mark.parametrize("script", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_becomes_a_notebook_and_ends_in_an_assertion(script):
    jupytext, nbformat = pytest.importorskip("jupytext"), pytest.importorskip("nbformat")
    notebook = jupytext.read(script)
    nbformat.validate(notebook)
    assert {cell.cell_type for cell in notebook.cells} == {"markdown", "code"}
    assert notebook.cells[0].source.startswith("# ")
    assert "assert " in notebook.cells[-1].source.splitlines()[-1]


def test_control_a_failing_assertion_fails_the_script(tmp_path):
    script = tmp_path / "wrong.py"
    script.write_text("print('so far')\nassert 1 + 1 == 3\n")
    with pytest.raises(AssertionError, match="so far"):
        run_script(script, tmp_path)
    script.write_text("import warnings\nwarnings.warn('old')\n")
    with pytest.raises(AssertionError, match="UserWarning: old"):
        run_script(script, tmp_path)


# The quickstart's posterior by another route: given the two scales everything is Gaussian, so only they are integrated,
# on a grid.


def chick_moments(table):
    """Posterior means and sds of the quickstart's model, by quadrature over spread and noise."""
    groups = [group.to_numpy() / 100 for _, group in table.groupby("feed")["weight"]]
    n, mean = (np.array([f(g) for g in groups]) for f in (len, np.mean))
    squares = sum(((g - g.mean()) ** 2).sum() for g in groups)
    spread, noise = np.meshgrid(np.linspace(0.005, 6.0, 1200), np.linspace(0.3, 1.1, 300), indexing="ij")
    variance = spread[..., None] ** 2 + noise[..., None] ** 2 / n  # of a feed's observed mean, given the common mean
    precision = 1.0 + (1 / variance).sum(-1)  # of the common mean, whose prior is normal(2.5, 1)
    centre = (2.5 + (mean / variance).sum(-1)) / precision
    fit_of_means = ((mean - 2.5) ** 2 / variance).sum(-1) - precision * (centre - 2.5) ** 2
    log_weight = halfnorm.logpdf(spread) + halfnorm.logpdf(noise) - (n.sum() - len(n)) * np.log(noise)
    log_weight += -squares / (2 * noise**2) - 0.5 * (np.log(variance).sum(-1) + np.log(precision) + fit_of_means)
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    share = spread[..., None] ** 2 / variance
    average = share * mean + (1 - share) * centre[..., None]
    average_variance = share * noise[..., None] ** 2 / n + (1 - share) ** 2 / precision[..., None]
    exact = {}
    for name, (value, inner) in {
        "spread": (spread, 0.0),
        "noise": (noise, 0.0),
        "mean": (centre, 1 / precision),
        "average": (average, average_variance),
    }.items():
        w = weight.reshape(weight.shape + (1,) * (value.ndim - 2))
        first = (w * value).sum((0, 1))
        exact[name] = first, np.sqrt((w * (inner + (value - first) ** 2)).sum((0, 1)))
    return exact


def assert_quickstart_moments(draws, exact):
    for name, (mean, sd) in exact.items():
        assert_moments(draws[name], mean, sd)


def test_the_quickstart_posterior_is_right(outputs):
    saved = outputs["quickstart"] / "quickstart_nuts.fit"
    assert saved.is_file(), "run the whole file: the tutorial's own test comes first"
    draws = load_fit(saved).draws
    table = pd.read_csv(ROOT / "tutorials/quickstart_data.csv")
    assert_quickstart_moments(draws, chick_moments(table))
    heavier = table.assign(weight=table["weight"] + 10 * (table["feed"] == "casein"))
    with pytest.raises(AssertionError):  # control: ten grams more on one feed of six would be seen
        assert_quickstart_moments(draws, chick_moments(heavier))


def test_the_example_of_the_readme(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "example.py"
    script.write_text(python_blocks("README.md")[0])
    defined = runpy.run_path(str(script))
    comparison = defined["comparison"]
    assert isinstance(comparison, Comparison)
    assert comparison.reference_verdict.kind == "TRUST"
    assert comparison.verdicts["auto"].kind == "TRUST"
    assert comparison.fits["nuts"].draws["a"].shape == (4, 1000)
    assert (tmp_path / "report.html").stat().st_size > 10_000
    draws, data = comparison.fits["nuts"].draws, comparison.fits["nuts"].data
    a, b = np.meshgrid(np.linspace(-1, 3, 201), np.linspace(1, 7, 201), indexing="ij")  # eight sds and more each way
    logits = a[..., None] + b[..., None] * (10 * data["dose"].numpy() - 18)
    log_weight = norm.logpdf(a, 0, 5) + norm.logpdf(b, 0, 5)
    log_weight += binom.logpmf(data["killed"].numpy(), data["exposed"].numpy(), expit(logits)).sum(-1)
    weight = np.exp(log_weight - log_weight.max())
    for name, value in {"a": a, "b": b}.items():
        mean, sd = np.average(value, weights=weight), np.sqrt(np.cov(value.ravel(), aweights=weight.ravel(), ddof=0))
        assert_moments(draws[name], mean, sd)


def test_the_recipes_of_contributing(tmp_path):
    script = tmp_path / "recipes.py"
    script.write_text("\n\n".join(python_blocks("CONTRIBUTING.md")))
    run_script(script, tmp_path)
