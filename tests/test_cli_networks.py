"""The command line on models with networks: trained with their own guide, scored on rows held out."""

import json

import numpy as np
import pytest

from inference import InputError, load_fit, log_marginal
from inference.cli import main
from inference.trained import rows_of, train
from ppl_models import MODELS

QUICK = ["--set", "num_latents=2", "--set", "hidden=20", "--num-epochs", "3", "--no-progress"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """60 pictures of 4 x 4 pixels, a bar in one of four places, as a file."""
    rng = np.random.default_rng(0)
    x = (rng.random((60, 4, 4)) < 0.1).astype(float)
    x[np.arange(60), rng.integers(4, size=60)] = 1.0
    path = tmp_path_factory.mktemp("pictures") / "bars.npz"
    np.savez(path, x=x)
    return path


def test_compare_scores_rows_held_out_and_writes_files(pictures, tmp_path, capsys):
    status = main(["compare", "vae", "--data", str(pictures), *QUICK, "--json", "--out", str(tmp_path)])
    document = json.loads(capsys.readouterr().out)
    trusted = document["verdicts"]["encoder"]["kind"] in ("TRUST", "TRUST_REWEIGHTED")
    assert status == (0 if trusted else 1)
    assert "num_epochs=3" in document["training"]["engine"]
    scores = document["likelihood"]
    assert scores["rows"] == 12  # a fifth
    assert scores["elbo"] < scores["log_p"] < 0
    assert set(document["verdicts"]) == {"encoder", "free"}
    written = {path.split("/")[-1] for path in document["files"]}
    assert {"report.html", "trained.fit", "likelihood.csv", "latents.csv", "gaps.csv", "reconstructions.png"} <= written
    assert all((tmp_path / name).is_file() for name in ("report.html", "trained.fit", "figures/traversals.png"))
    assert load_fit(tmp_path / "trained.fit", MODELS["vae"]).draws["z"].shape[2:] == (48, 2)


def test_compare_in_words(pictures, capsys):
    assert main(["compare", "vae", "--data", str(pictures), *QUICK]) in (0, 1)
    printed = capsys.readouterr().out
    for part in ("Ran 3 steps (3 epochs)", "12 rows", "latents are active", "amortisation gap", "encoder: "):
        assert part in printed


def test_one_width_is_no_tuple():
    with pytest.raises(InputError, match=r"data\['hidden'\]: expected a tuple, such as \(20,\), got 20"):
        train(MODELS["vae"], {"x": np.ones((4, 4, 4)), "hidden": 20}, seed=0)


def test_more_training_scores_better(pictures, capsys):
    """Control: what is scored is what was trained."""
    scores = []
    for epochs in ("1", "200"):
        main(["compare", "vae", "--data", str(pictures), *QUICK[:4], "--num-epochs", epochs, "--json"])
        scores.append(json.loads(capsys.readouterr().out)["likelihood"]["log_p"])
    assert scores[1] > scores[0] + 0.5


def test_fit_trains_and_saves_what_check_judges(pictures, tmp_path, capsys):
    common = ["vae", "--data", str(pictures), *QUICK, "--num-samples", "20"]
    assert main(["fit", *common, "--out", str(tmp_path), "--json"]) == 1  # three epochs are too few, it says
    document = json.loads(capsys.readouterr().out)
    assert document["status"]["kind"] == "budget_spent"
    assert "too few to see" in document["status"]["message"]
    assert len(document["summary"]) == 60 * 2
    assert main(["check", "vae", "--fit", str(tmp_path / "trained.fit"), "--json"]) in (0, 1)
    from_file = json.loads(capsys.readouterr().out)["verdict"]
    assert main(["check", *common, "--json"]) in (0, 1)
    assert json.loads(capsys.readouterr().out)["verdict"] == from_file
    by_name = load_fit(tmp_path / "trained.fit", MODELS["vae"])
    by_hand = load_fit(tmp_path / "trained.fit", MODELS["vae"].model, guide=MODELS["vae"].guide)
    scores = [log_marginal(fit, rows=5, num_samples=100).log_p for fit in (by_name, by_hand)]
    np.testing.assert_array_equal(*scores)
    with pytest.raises(InputError, match="has no trained guide"):
        log_marginal(load_fit(tmp_path / "trained.fit", MODELS["vae"].model))


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["compare", "vae", "--engines", "auto,nuts"], "leave out --engines"),
        (["compare", "vae", "--num-warmup", "10"], "leave out --engines"),
        (["compare", "eight_schools_centered", "--num-epochs", "3"], "--num-epochs: is for models with networks"),
        (["fit", "vae", "--engine", "svi", "--num-epochs", "3"], "--num-epochs: is for models with networks"),
        (["compare", "vae", "--num-epochs", "0"], "expected a whole number from 1"),
        (["compare", "vae", "--set", "hiden=3"], "Did you mean 'hidden'"),
        (["compare", "vae", "--set", "hidden=20,x"], "--set 'hidden=x': expected a number"),
        (["compare", "vae", "--set", "hidden=20,0"], "hidden: expected widths from 1, got (0, 20)"),
        (["compare", "vae", "--set", "network=deep"], "network: expected one of dense, convolutional"),
    ],
)
def test_what_does_not_go_with_networks_is_refused(argv, says, capsys):
    assert main(argv) == 2
    complaint = capsys.readouterr().err.strip()
    assert says in complaint
    assert "\n" not in complaint


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x: 255 * x, "x: expected grey levels from 0 to 1, got 255"),
        (lambda x: x - 1, "x: expected grey levels from 0 to 1, got -1"),
        (lambda x: 0.5 * x, "decoder='bernoulli' expects zeros and ones"),
        (lambda x: x[:0], "x: expected pictures (N, height, width)"),
        (lambda x: x[:, 0, 0], "x: expected pictures (N, height, width)"),
        (lambda x: x[:1], "at least two rows"),
        (lambda x: np.where(np.arange(60)[:, None, None] == 7, np.nan, x), "pixels are missing (NaN)"),
        (lambda x: np.where(x == 1, np.inf, x), "NaN or infinite"),
    ],
    ids=["bytes", "negative", "grey", "empty", "no pictures", "one row", "gaps", "infinite"],
)
def test_bad_pictures_are_refused_in_one_line(change, says, pictures, tmp_path, capsys):
    path = tmp_path / "bad.npz"
    np.savez(path, x=change(np.load(pictures)["x"]))
    assert main(["compare", "vae", "--data", str(path), *QUICK]) == 2
    complaint = capsys.readouterr().err.strip()
    assert says in complaint
    assert "\n" not in complaint
    assert len(complaint) < 500


SMALL = {"vae": {"hidden": (8,)}, "conditional_vae": {"hidden": (8,)}, "semi_supervised_vae": {"hidden": (8,)}}
SMALL |= {"two_layer_vae": {"hidden": (8,), "hidden_top": (4,)}, "deep_markov": {"hidden": 4, "rnn_hidden": 4}}


@pytest.mark.parametrize("model", [pytest.param(m, id=m.name) for m in MODELS.values() if m.training])
def test_models_with_networks_train_and_score_their_own_rows(model):
    """As `ppl compare NAME` does, with smaller networks and less patience."""
    rows = rows_of(model, model.data() | SMALL.get(model.name, {}), bundled=True, seed=0)
    fitted = train(model, rows.train, seed=0, num_epochs=1, num_samples=4)
    score = log_marginal(fitted, rows.test, rows=3, num_samples=100)
    assert np.all(score.elbo < score.log_p + 1e-6)
    num = len(rows.test["x"])
    assert rows.labels is None or len(rows.labels) == num
    same = (rows.test["x"][:, None].flatten(2) == rows.train["x"][None].flatten(2)).all(-1)
    assert same.any(1).double().mean() < 0.1  # what is scored was not trained on; small digits can be alike


def test_a_given_decoder_leaves_latents_for_any_engine_and_none_is_learnt(tmp_path, capsys):
    """Probabilistic PCA, whose own data have the loadings; those of other data are trained."""
    quick = ["--engines", "svi,nuts", "--num-warmup", "20", "--num-samples", "20", "--num-chains", "2", "--json"]
    assert main(["compare", "probabilistic_pca", *quick]) in (0, 1)
    assert set(json.loads(capsys.readouterr().out)["verdicts"]) == {"svi"}
    x = np.random.default_rng(0).normal(size=(40, 3)) @ np.random.default_rng(1).normal(size=(3, 3))
    np.savetxt(tmp_path / "table.csv", x, delimiter=",", header="a,b,c", comments="")
    data = ["--data", str(tmp_path / "table.csv")]
    assert main(["compare", "probabilistic_pca", *data, *quick]) == 2
    assert "has no prior" in capsys.readouterr().err
    assert main(["compare", "probabilistic_pca", *data, "--set", "num_latents=1", "--num-epochs", "200"]) == 0
    printed = capsys.readouterr().out
    assert "encoder: TRUST" in printed
    assert "nan" not in printed
