"""What reports and the command line say of discrete sites: sentences, tables and figures of the believed fit."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba

from inference import NUTS, AutoVI, InputError, compare, fit
from inference.discrete_plots import (
    CERTAIN,
    cluster_figure,
    co_clustering_figure,
    palette,
    responsibility_figure,
    state_figure,
)
from inference.discrete_view import discrete_view
from inference.output_files import write_view
from inference.prediction import SitePrediction
from inference.report import html
from inference.storage import load_fit
from ppl_models import MODELS
from tests.zoo import SCHOOLS, schools

RNG = np.random.default_rng(1)
TWO = {"x": np.concatenate([RNG.normal(0.0, 1.0, (30, 2)), RNG.normal(6.0, 1.0, (20, 2))]), "K": 2}
MIXTURE = MODELS["gaussian_mixture"]
SHORT = NUTS(num_warmup=300, num_samples=250)


@pytest.fixture(scope="module")
def nuts():
    return fit(MIXTURE, TWO, SHORT, seed=1)


@pytest.fixture(scope="module")
def chain():
    return fit(MODELS["poisson_hmm"], MODELS["poisson_hmm"].data(), AutoVI(num_samples=100), seed=1)


def site(probabilities, name="assignment", dims=("data",)):
    p = np.asarray(probabilities, dtype=float)
    return SitePrediction(name, dims, {}, np.arange(p.shape[-1]), p, np.zeros_like(p))


# --- The view ---------------------------------------------------------------------------------------------------------


def test_a_mixture_is_told_in_sentences_tables_and_figures(nuts, tmp_path):
    view = discrete_view(nuts)
    said = str(view)
    assert "exchangeable" in said
    assert "2 clusters are occupied" in said
    table = view.tables()["assignment"]
    assert len(table) == 50
    one, other = table["assignment"].to_numpy()[:30], table["assignment"].to_numpy()[30:]
    assert len(set(one)) == len(set(other)) == 1  # six sds apart: no row in doubt
    assert one[0] != other[0]
    paths = write_view(view, tmp_path)
    assert sorted(path.suffix for path in paths) == [".csv", ".png", ".png", ".png"]
    again = pd.read_csv(tmp_path / "assignment.csv")
    assert again["probability"].to_numpy() == pytest.approx(table["probability"].to_numpy())


def test_labels_are_aligned_first(nuts):
    """Unaligned draws of chains in different labellings would leave every row at about one half."""
    labels = np.argsort(nuts.draws["loc"][..., 0], axis=-1)[..., 0]
    assert 0.1 < (labels == 0).mean() < 0.9  # both labellings are there
    assert discrete_view(nuts).prediction["assignment"].probability.min() > 0.99


def test_states_are_told_and_drawn(chain):
    view = discrete_view(chain)
    assert "of the time" in str(view)
    table = view.tables()["x_states"]
    assert table.index.names == ["time"]
    figures = view.figures()
    assert list(figures) == ["states of x_states"]
    above, below = figures["states of x_states"].axes
    drawn = above.lines[0].get_ydata()
    assert drawn == pytest.approx(chain.data["x"].numpy())
    assert below.get_ylim() == (0.0, 1.0)


def test_a_model_without_discrete_sites_has_no_view(tmp_path):
    plain = fit(schools, SCHOOLS, AutoVI(num_samples=50), seed=0)
    assert discrete_view(plain) is None
    assert discrete_view(load_fit(plain.save(tmp_path / "fit"))) is None


def test_a_comparison_has_the_view_of_the_fit_to_believe(nuts):
    auto = fit(MIXTURE, TWO, AutoVI(num_samples=250), seed=2)
    comparison = compare({"nuts": nuts, "auto": auto})
    assert comparison.believed == "nuts"
    page = html(comparison)
    assert "Discrete sites, by nuts" in page
    assert page.count("most probable clusters") >= 1
    few = fit(MIXTURE, TWO, NUTS(num_warmup=20, num_samples=20, num_chains=2), seed=3)
    doubtful = compare({"few": few, "auto": auto}, reference="few")
    assert not doubtful.reference_verdict.trusted
    assert doubtful.believed == ("auto" if doubtful.verdicts["auto"].trusted else "few")


# --- Figures ----------------------------------------------------------------------------------------------------------


def test_uncertain_rows_are_open_markers():
    p = np.array([[0.99, 0.01], [0.02, 0.98], [CERTAIN - 0.1, 0.2], [0.97, 0.03]])
    ax = cluster_figure(RNG.normal(size=(4, 2)), site(p)).axes[0]
    sure, unsure = ax.collections[-2:]
    assert (len(sure.get_offsets()), len(unsure.get_offsets())) == (3, 1)
    assert unsure.get_facecolors().size == 0
    colours = [to_rgba(c, alpha=0.7) for c in (palette(2)[0], palette(2)[1], palette(2)[0])]
    assert sure.get_facecolors() == pytest.approx(np.array(colours))


@pytest.mark.parametrize(("num_columns", "num_panels"), [(1, 1), (2, 1), (3, 3), (6, 1)])
def test_columns_are_drawn_against_each_other_or_as_components(num_columns, num_panels):
    values = RNG.normal(size=(40, num_columns))
    values[3, 0] = np.nan
    figure = cluster_figure(values, site(RNG.dirichlet(np.ones(9), 40)))
    assert sum(ax.get_visible() for ax in figure.axes) == num_panels
    assert ("component 1" in figure.axes[0].get_xlabel()) == (num_columns > 4)


def test_stacked_bars_and_heat_map_show_the_numbers():
    p = RNG.dirichlet(np.ones(3), 7)
    bars = responsibility_figure(site(p)).axes[0].patches
    heights = np.array([bar.get_data().values - bar.get_data().baseline for bar in bars]).T
    assert sorted(heights.max(axis=1)) == pytest.approx(sorted(p.max(axis=1)))
    labels = np.array([1, 0, 1, 0])
    matrix = np.equal.outer(labels, labels).astype(float)
    shown = co_clustering_figure(matrix, labels).axes[0].images[0].get_array()
    assert np.array_equal(shown, np.kron(np.eye(2), np.ones((2, 2))))


def test_what_does_not_match_is_refused():
    with pytest.raises(InputError, match=r"values: expected .* got \(3, 2\)"):
        cluster_figure(np.zeros((3, 2)), site(np.full((4, 2), 0.5)))
    with pytest.raises(InputError, match="series: expected"):
        state_figure(np.zeros(5), site(np.full((4, 2), 0.5), "y_states", ("time",)))


def test_several_sequences_and_many_columns_are_drawn():
    p = np.full((5, 6, 2), 0.5)
    figure = state_figure(RNG.normal(size=(5, 6, 12)), site(p, "y_states", ("sequence", "time")))
    assert len(figure.axes) == 6  # three sequences
    assert len(figure.axes[0].images) == 1
