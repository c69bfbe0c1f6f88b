"""How the command line chooses, and tells, on what densities run."""

import pytest

from inference.cli import main
from inference.engine_names import parse_engines
from inference.errors import InputError
from inference.native.compiler import find_compiler

needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="there is no C++ compiler here")
SMALL = ["--num-samples", "50", "--num-chains", "2", "--no-progress"]


@pytest.fixture
def compared(capsys):
    """Run a comparison of two engines on a model that takes no time; give what it prints."""

    def run(*options):
        main(["compare", "beta_binomial", "--engines", "auto,nuts", "--num-warmup", "100", *SMALL, *options])
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize(
    ("backend", "density"), [("python", "graph"), pytest.param("native", "native", marks=needs_compiler)]
)
def test_compare_runs_on_the_backend_and_says_so(compared, backend, density):
    costs = compared("--backend", backend)
    assert f"nutpie, {density} density" in costs
    assert f"L-BFGS, {density} density" in costs


def test_compare_shows_the_reason_once_and_for_whom(compared, monkeypatch):
    monkeypatch.setattr("inference.native.compiler._find", lambda *_: None)
    text = compared("--backend", "native")
    assert text.count("no C++ compiler on PATH") == 1
    assert "auto, nuts: no C++ compiler" in " ".join(text.split())
    assert "nutpie, graph density" in text


@needs_compiler
def test_control_no_reason_where_nothing_failed(compared):
    assert "compiler" not in compared("--backend", "native")


def test_fit_shows_the_reason(capsys, monkeypatch):
    monkeypatch.setattr("inference.native.compiler._find", lambda *_: None)
    assert main(["fit", "beta_binomial", "--engine", "auto", "--backend", "native", *SMALL]) == 0
    assert "Note: no C++ compiler on PATH" in capsys.readouterr().out


def test_names_that_say_a_backend_keep_it():
    engines = parse_engines("nuts,nuts:pyro,nuts:low_rank,svi", backend="python")
    assert [e.backend for e in engines.values()] == ["python", "pyro", "python", "python"]


def test_a_backend_that_an_engine_lacks_is_refused(capsys):
    with pytest.raises(InputError, match="--backend pyro: engine 'auto' has none"):
        parse_engines("auto,nuts", backend="pyro")
    assert main(["compare", "beta_binomial", "--backend", "stan"]) == 2
    error = capsys.readouterr().err
    assert "'stan'" in error
    assert all(name in error for name in ("auto", "native", "python", "pyro"))
