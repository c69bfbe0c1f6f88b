"""The command line, in process: what it reads, what it refuses, and what it leaves behind."""

import json
import subprocess
import sys
import warnings

import arviz_base
import numpy as np
import pytest
import xarray as xr

import inference.cli
from inference.cli import main

SHORT = ["--num-warmup", "300", "--num-samples", "500", "--num-chains", "4"]

MODEL_FILE = """
import pyro
import pyro.distributions as dist
import torch


def weights(*, species, mass):
    with pyro.plate("species", int(species.max()) + 1):
        mean = pyro.sample("mean", dist.Normal(4.0, 2.0))
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    with pyro.plate("bird", len(mass)):
        pyro.sample("obs", dist.Normal(mean[species], scale), obs=mass)


def own_data(*, y):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def own_data_data():
    return {"y": torch.tensor([1.0, 2.0, 3.0])}


def no_sample_data():
    return torch.ones(3)


def explodes_data():
    return {"mass": [1.0, 2.0][5]}


def by_code(*, species, mass):
    mean = pyro.sample("mean", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("bird", len(mass)):
        pyro.sample("obs", dist.Normal(mean[mass], 1.0), obs=mass)


def explodes(*, mass):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    raise RuntimeError("the tank\\nis empty")


def no_sample(*, mass):
    return mass.sum()


NOT_A_MODEL = 3
"""


@pytest.fixture
def model_file(tmp_path):
    path = tmp_path / "birds.py"
    path.write_text(MODEL_FILE)
    return path


@pytest.fixture
def birds(tmp_path):
    """60 birds of three species, means 3, 4 and 6, and a column that no model takes."""
    rng = np.random.default_rng(0)
    species = np.repeat(["Gentoo", "Adelie", "Chinstrap"], 20)
    mass = rng.normal(np.repeat([6.0, 3.0, 4.0], 20), 0.3)
    path = tmp_path / "birds.csv"
    rows = [f"{s},{m:.3f},{i}" for i, (s, m) in enumerate(zip(species, mass, strict=True))]
    path.write_text("\n".join(["species,mass,ring", *rows]) + "\n")
    return path


@pytest.fixture
def refused(capsys):
    """Run a command that must be refused: status 2, one line on stderr with the given parts, nothing on stdout."""

    def run(*argv, says):
        assert main([str(a) for a in argv]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("ppl: ")
        assert err.count("\n") == 1
        for part in says:
            assert part in err

    return run


def test_models_are_listed_with_summaries(capsys):
    from ppl_models import MODELS

    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(MODELS)
    assert any(line.startswith("eight_schools ") and MODELS["eight_schools"].summary in line for line in lines)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], ["ppl --help"]),
        (["frobnicate"], ["frobnicate"]),
        (["compare"], ["MODEL", "ppl compare --help"]),
        (["compare", "eight_school"], ["'eight_school'", "Did you mean 'eight_schools'?", "normal_mean"]),
        (["compare", "normal_mean", "--engines", "auto,nut"], ["'nut'", "nuts:pyro", "svi:GUIDE"]),
        (["compare", "normal_mean", "--engines", "auto,nuts:stan"], ["stan", "nuts:low_rank", "nuts:pyro"]),
        (["compare", "normal_mean", "--engines", "svi:nonesuch,nuts"], ["nonesuch", "normal", "multivariate_normal"]),
        (["compare", "normal_mean", "--engines", "nuts"], ["at least one more"]),
        (["compare", "normal_mean", "--engines", "auto,auto"], ["'auto'", "twice"]),
        (["compare", "normal_mean", "--engines", ","], ["none named"]),
        (["compare", "normal_mean", "--engines", "auto,svi"], ["--reference", "auto, svi"]),
        (["compare", "normal_mean", "--reference", "stan"], ["'stan'", "auto, nuts"]),
        (["compare", "normal_mean", "--set", "K"], ["'K'", "key=value"]),
        (["compare", "normal_mean", "--set", "K=three"], ["'three'", "number"]),
        (["compare", "normal_mean", "--num-chains", "0"], ["--num-chains", "from 1", "'0'"]),
        (["compare", "normal_mean", "--seed", "x"], ["--seed", "'x'"]),
        (["check", "normal_mean", "--num-warmup", "10"], ["--num-warmup", "nuts"]),
        (["fit", "normal_mean", "--engine", "auto,nuts"], ["--engine", "one"]),
        (["compare", "nowhere.py:model"], ["nowhere.py", "no such file"]),
        (["compare", "normal_mean", "--data", "nowhere.csv"], ["nowhere.csv", "no such file"]),
        (["compare", "normal_mean", "--set", "sigmma=2"], ["'sigmma'"]),
    ],
)
def test_bad_requests_are_refused_in_one_line(argv, says, refused):
    refused(*argv, says=says)


def test_model_files_are_checked(model_file, tmp_path, refused):
    refused("fit", f"{model_file}:wieghts", says=["wieghts", "Did you mean 'weights'?", "explodes"])
    refused("fit", model_file, says=["say which function", "weights"])
    refused("fit", f"{model_file}:NOT_A_MODEL", says=["NOT_A_MODEL", "Pyro function", "3"])
    refused("fit", f"{model_file}:weights", says=["--data is needed", "species, mass"])
    refused("fit", f"{model_file}:no_sample", says=["data()", "one mapping", "Tensor"])
    refused("fit", f"{model_file}:explodes", says=["birds.py, line", "IndexError"])
    broken = tmp_path / "broken.py"
    broken.write_text("x = 1\ndef model(:\n    pass\n")
    refused("fit", f"{broken}:model", says=["broken.py, line 2", "syntax error"])
    broken.write_text("x = 1\n\nraise KeyError('lost')\n")
    refused("fit", f"{broken}:model", says=["broken.py, line 3", "KeyError", "lost"])
    broken.write_text("import nonesuch_package\n")
    refused("fit", f"{broken}:model", says=["line 1", "nonesuch_package"])


def test_output_folder_that_is_a_file_is_refused_before_the_fit(tmp_path, refused):
    (tmp_path / "taken").write_text("")
    refused("compare", "normal_mean", "--out", tmp_path / "taken", says=["--out", "taken"])


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("d.txt", "y\n1\n", [".json, .npz, .csv", "'.txt'"]),
        ("d.json", "{", ["not valid JSON"]),
        ("d.json", "[1, 2]", ["one JSON object", "list"]),
        ("d.json", '{"y": [1.0, NaN, 3.0]}', ["'y'", "1 of 3", "index 1"]),
        ("d.json", '{"y": [1.0], "z": [1.0]}', ["'z'", "takes y"]),
        ("d.json", "{}", ["y"]),
        ("d.npz", "no archive", ["NPZ"]),
        ("d.csv", "", ["not a CSV file"]),
        ("d.csv", "y\n", ["no rows"]),
        ("d.csv", "why\n1\n", ["needs 'y'", "the file has why"]),
        ("d.csv", "y,x\n1,2,3\n4,5,6\n", ["more fields than the header"]),
        ("d.csv", "y\n1\n\n2\nNA\n3\ninf\n", ["'y'", "2 of 5", "line 5"]),
        ("d.csv", "y\n1\n2\n1.2.3\n", ["'y'", "mixes numbers and text", "line 4", "1.2.3"]),
    ],
)
def test_bad_data_files_are_refused(name, content, says, model_file, tmp_path, refused):
    path = tmp_path / name
    path.write_text(content)
    refused("fit", f"{model_file}:own_data", "--data", path, says=says)


def test_missing_text_is_counted_by_line_of_the_file(model_file, tmp_path, refused, capsys):
    path = tmp_path / "d.csv"
    path.write_text('species,mass\n"two\nlines",1\nb,2\n,3\n,4\n')
    refused("fit", f"{model_file}:weights", "--data", path, says=["'species'", "2 of 4", "line 5"])
    # A gap in a column that the model does not take is no concern.
    path.write_text("y,other\n1,\n2,b\n")
    assert main(["fit", f"{model_file}:own_data", "--data", str(path), "--engine", "auto"]) == 0
    assert "left out other" in capsys.readouterr().err


def test_a_function_that_is_no_model_is_refused(model_file, tmp_path, refused):
    path = tmp_path / "mass.json"
    path.write_text('{"mass": [1.0, 2.0]}')
    refused("fit", f"{model_file}:no_sample", "--data", path, says=["pyro.sample", "not a Pyro model"])


def test_failures_inside_the_model_name_file_and_line(model_file, birds, capsys, monkeypatch):
    line = MODEL_FILE.splitlines().index('    raise RuntimeError("the tank\\nis empty")') + 1
    args = ["fit", f"{model_file}:explodes", "--data", str(birds)]
    monkeypatch.setenv("PPL_DEBUG", "1")
    assert main(args) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err  # asked for, shown
    monkeypatch.delenv("PPL_DEBUG")
    assert main(args) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert f"birds.py, line {line}" in err
    assert "the tank is empty" in err
    assert "RuntimeError" in err


def test_an_index_that_is_a_float_gets_a_remedy(model_file, birds, capsys):
    assert main(["fit", f"{model_file}:by_code", "--data", str(birds)]) == 2
    err = capsys.readouterr().err
    assert ".long()" in err
    assert "birds.py, line" in err


def test_interruption_is_one_line(monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(inference.cli, "compare", interrupted)
    assert main(["compare", "normal_mean", *SHORT]) == 130
    assert capsys.readouterr().err == "ppl: interrupted\n"


def test_a_fault_of_ours_is_one_line_and_not_the_users_doing(monkeypatch, capsys):
    monkeypatch.setattr(inference.cli, "_known_models", lambda: 1 / 0)
    assert main(["models"]) == 3
    err = capsys.readouterr().err
    assert "internal fault" in err
    assert err.count("\n") == 1


def test_compare_writes_report_draws_and_figures(tmp_path, capsys):
    out = tmp_path / "deep" / "out"
    assert main(["compare", "normal_mean", "--out", str(out), "--engines", "auto,nuts,svi:normal", *SHORT]) in (0, 1)
    text, err = capsys.readouterr()
    assert err == ""
    assert (out / "report.html").stat().st_size > 1000
    assert list((out / "figures").glob("*.png"))
    for name in ("auto.nc", "nuts.nc", "svi-normal.nc"):
        assert str(out / name) in text
        with xr.open_datatree(out / name, engine="h5netcdf") as tree:
            assert tree["posterior"].sizes["chain"] == 4
            assert tree["posterior"].sizes["draw"] == 500
            assert {"posterior", "sample_stats"} <= set(tree.children)


def test_exit_status_is_the_verdict_and_json_is_all_that_is_printed(capsys):
    """AutoVI is exact on a Gaussian posterior. A point guide (control) has no spread, and must not pass."""
    for engines, status in (("auto,nuts", 0), ("svi:delta,nuts", 1)):
        assert main(["compare", "normal_mean", "--json", "--no-progress", "--engines", engines]) == status
        out, err = capsys.readouterr()
        document = json.loads(out)
        assert err == ""
        assert document["model"] == "normal_mean"
        assert document["seed"] == 0
        (verdict,) = document["verdicts"].values()
        assert verdict["trusted"] is (status == 0)


def test_users_model_and_csv(model_file, birds, tmp_path, capsys):
    out = tmp_path / "out"
    argv = ["compare", f"{model_file}:weights", "--data", str(birds), "--out", str(out), *SHORT]
    assert main(argv) == 0
    _, err = capsys.readouterr()
    assert "left out ring" in err
    assert "Adelie = 0, Chinstrap = 1, Gentoo = 2" in err
    for name in ("auto", "nuts"):
        with xr.open_datatree(out / f"{name}.nc", engine="h5netcdf") as tree:
            mean = tree["posterior/mean"].mean(("chain", "draw"))
            (dim,) = mean.dims
            # Labels sit on the right birds: prior and noise allow .3 / sqrt(20) = .07 around the truth.
            for species, truth in (("Gentoo", 6.0), ("Adelie", 3.0), ("Chinstrap", 4.0)):
                assert abs(float(mean.sel({dim: species})) - truth) < 0.3


def test_equal_seeds_give_equal_output(capsys):
    texts = []
    for seed in ("3", "3", "4"):
        main(["fit", "normal_mean", "--seed", seed, "--json", *SHORT])
        texts.append(json.dumps(json.loads(capsys.readouterr().out)["summary"]))
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


def test_fit_prints_a_summary_and_saves(tmp_path, capsys):
    out = tmp_path / "fit"
    assert main(["fit", "normal_mean", "--out", str(out), *SHORT]) == 0
    text = capsys.readouterr().out
    assert "r_hat" in text
    assert "ess_bulk" in text
    with xr.open_datatree(out / "nuts.nc", engine="h5netcdf") as tree:
        assert arviz_base.convert_to_datatree(tree)["posterior"].sizes["draw"] == 500
    assert main(["check", "normal_mean", "--fit", str(out / "nuts.fit")]) == 0
    assert "TRUST" in capsys.readouterr().out
    assert main(["check", "normal_mean", "--fit", str(out / "nuts.nc")]) == 2
    assert main(["check", "normal_mean", "--fit", str(out / "nuts.fit"), "--set", "K=2"]) == 2


def test_small_numbers_are_not_rounded_away(model_file, tmp_path, capsys):
    path = tmp_path / "d.json"
    path.write_text(json.dumps({"y": [0.001234] * 40_000}))
    assert main(["fit", f"{model_file}:own_data", "--engine", "auto", "--json", "--data", str(path)]) == 0
    assert json.loads(capsys.readouterr().out)["summary"]["mu"]["sd"] == pytest.approx(0.005, rel=0.1)


def test_independent_draws_get_no_rhat(capsys):
    assert main(["fit", "normal_mean", "--engine", "auto"]) == 0
    assert "r_hat" not in capsys.readouterr().out


def test_check_judges_without_mcmc(capsys):
    status = main(["check", "normal_mean", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert status == (0 if document["verdict"]["trusted"] else 1)
    assert document["engine"].startswith("AutoVI")


def test_data_beside_the_function_and_settings(model_file, tmp_path, capsys):
    assert main(["fit", f"{model_file}:own_data", "--engine", "auto", "--json"]) == 0
    mean = json.loads(capsys.readouterr().out)["summary"]["mu"]["mean"]
    assert mean == pytest.approx(2.0, abs=0.2)  # posterior sd .57, 4000 draws
    np.savez(tmp_path / "d.npz", y=np.array([5.0, 5.0, 5.0, 5.0]))
    assert main(["fit", f"{model_file}:own_data", "--engine", "auto", "--json", "--data", str(tmp_path / "d.npz")]) == 0
    mean = json.loads(capsys.readouterr().out)["summary"]["mu"]["mean"]
    assert mean == pytest.approx(5.0, abs=0.2)


def test_settings_are_numbers_and_truth_values():
    from inference.data_files import parse_setting

    assert parse_setting("K=3") == ("K", 3)
    assert parse_setting("scale = 0.5") == ("scale", 0.5)
    assert parse_setting("flag=True") == ("flag", True)
    assert parse_setting("hidden=200, 100", several={"hidden"}) == ("hidden", (200, 100))
    assert parse_setting("hidden=20", several={"hidden"}) == ("hidden", (20,))
    assert parse_setting("hidden=", several={"hidden"}) == ("hidden", ())
    assert isinstance(parse_setting("K=3")[1], int)
    assert isinstance(parse_setting("K=3.0")[1], float)


def test_warnings_are_single_lines_without_source(monkeypatch, capsys):
    def warns(_):
        warnings.warn("for developers", DeprecationWarning, stacklevel=1)
        warnings.simplefilter("always", UserWarning)  # the suite makes errors of them
        warnings.warn("two\nlines", UserWarning, stacklevel=1)
        return 0

    monkeypatch.setattr(inference.cli, "_models", warns)
    assert main(["models"]) == 0
    assert capsys.readouterr().err == "ppl: two lines\n"


def test_python_m_inference_is_the_same_command():
    result = subprocess.run(
        [sys.executable, "-m", "inference", "compare", "x"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("ppl: model 'x'")
