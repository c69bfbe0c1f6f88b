"""Figures, tables and the report of a latent-variable model whose rows are pictures."""

from dataclasses import replace

import linear_latent as ll
import numpy as np
import pytest

from inference import InputError, impute, latent_view
from inference.latent_plots import image_shape, imputation_figure, posterior_figure

TRUTH = ll.linear(3, 16, size=0.5)
X = ll.rows_of(TRUTH, 30)


@pytest.fixture(scope="module")
def used():
    return ll.trained(TRUTH, X, shift=0.2)


@pytest.fixture(scope="module")
def view(used):
    return latent_view(used, num_samples=200, gaps=2, labels=np.arange(30) % 3)


def test_reconstructions_and_traversals_are_decoded_latents(view):
    rows = np.linspace(0, 29, 10).astype(int)
    np.testing.assert_allclose(view.pictures["given"], X[rows])
    expected = (TRUTH.mean(X[rows]) + 0.2) @ TRUTH.weight.T + TRUTH.offset
    np.testing.assert_allclose(view.pictures["reconstructed"], expected, atol=1.0)
    assert np.abs(view.pictures["reconstructed"] - expected).mean() < 0.2
    # One step of a traversal moves the picture along the weights of its latent.
    steps = np.diff(view.pictures["traversals"], axis=1)
    for label, moved in zip(view.traversed, steps, strict=True):
        weights = TRUTH.weight[:, view.usage.labels.index(label)]
        np.testing.assert_allclose(moved, np.tile(weights * 6 / 9, (9, 1)), atol=1e-9)
    np.testing.assert_allclose(view.means, TRUTH.mean(X) + 0.2, atol=0.5)


def test_figures_and_tables(view):
    figures = view.figures()
    assert set(figures) == {
        "reconstructions",
        "prior samples",
        "traversals",
        "latents",
        "latent usage",
        "gaps",
        "posteriors",
        "learning curve",
    }
    assert len(figures["reconstructions"].axes) == 20
    assert len(posterior_figure(view.gaps, num_rows=1).axes) == 1
    assert len(view.tables()["likelihood"]) == 30
    assert len(view.tables()["latents"]) == 3
    for part in ("log p(x)", "latents are active", "amortisation"):
        assert part in str(view)


def test_the_learning_curve_is_per_row_that_was_trained_on():
    """A fifth of the rows is held out, and no part of the losses."""
    fitted = ll.trained(TRUTH, X, shift=0.2)
    assert latent_view(fitted, num_samples=200, gaps=0).num_trained == 30
    held_out = replace(fitted, state={**fitted.state, "training": {"rows": 24}})
    assert latent_view(held_out, num_samples=200, gaps=0).num_trained == 24


def test_report_has_the_view(view, tmp_path):
    page = view.to_html(tmp_path / "report.html").read_text()
    for part in ("Latent variables", "Decoded draws of the prior", "encoder", "latents are active"):
        assert part in page
    assert str(view.likelihood) in str(view.comparison)


def test_without_gaps_and_without_pictures(used):
    narrow = ll.linear(2, 5)
    plain = latent_view(ll.trained(narrow, ll.rows_of(narrow, 12)), num_samples=100, gaps=0)
    assert plain.shape is None
    assert set(plain.figures()) == {"latents", "latent usage", "learning curve"}
    with pytest.raises(InputError, match="gaps: none were measured"):
        plain.to_html("never.html")
    with pytest.raises(InputError, match="labels: expected one for each of 30 rows"):
        latent_view(used, num_samples=100, gaps=0, labels=[1, 2])


def test_imputation_figures(used):
    gaps = X.copy()
    gaps[:2, :5] = np.nan
    found = impute(used, {"x": gaps}, rows=4)
    assert len(imputation_figure(found, gaps).axes) == 3  # row 0 given, mean, sd
    narrow = ll.linear(2, 5)
    rows = ll.rows_of(narrow, 6)
    rows[:2, 0] = np.nan
    drawn = imputation_figure(impute(ll.trained(narrow, rows), {"x": rows}), rows)
    assert len(drawn.axes) == 2
    with pytest.raises(InputError, match="nothing to draw"):
        imputation_figure(impute(used, rows=2), X)


@pytest.mark.parametrize(
    ("shape", "given", "expected"),
    [
        ((64,), None, (8, 8)),
        ((8, 6), None, (8, 6)),
        ((1, 8, 8), None, (8, 8)),
        ((3, 8, 8), None, (3, 8, 8)),
        ((5,), None, None),
        ((), None, None),
        ((24,), (4, 6), (4, 6)),
    ],
)
def test_shape_of_pictures(shape, given, expected):
    assert image_shape(shape, given) == expected


def test_wrong_shape_is_refused():
    with pytest.raises(InputError, match="image_shape: expected"):
        image_shape((24,), (5, 5))
