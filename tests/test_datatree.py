"""A fit as ArviZ data: groups, names, dims and labels of the tree, and everything ArviZ does with it."""

import warnings

import arviz_plots
import arviz_stats
import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from scipy.special import logsumexp
from scipy.stats import norm

from inference import NUTS, SVI, AutoVI, InputError, fit
from ppl_models import MODELS
from tests.netcdf import round_trip, variables

ENGINES = {
    "nuts": NUTS(num_warmup=100, num_samples=100, num_chains=2, save_warmup=True),
    "svi": SVI(num_steps=200, num_samples=100, num_chains=2),
    "auto": AutoVI(num_samples=100, num_chains=2),
}
EVERYTHING = {"log_likelihood": True, "posterior_predictive": True, "prior": True, "unconstrained": True}


def nested(y, x):
    """Two nested plates, event dims, an event of size one, a deterministic vector, and a covariate."""
    single = pyro.sample("single", dist.Normal(torch.zeros(1), 1.0).to_event(1))
    with pyro.plate("outer", 2, dim=-2):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("inner", 4, dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.deterministic("shifted", z[..., 0] + a)
            pyro.sample("y", dist.Normal(z + a.unsqueeze(-1) + single + x[:, None], 1.0).to_event(1), obs=y)


def scalar(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


MADE = {
    "eight_schools": (MODELS["eight_schools"], MODELS["eight_schools"].data()),
    "gaussian_mixture": (MODELS["gaussian_mixture"], {"x": MODELS["gaussian_mixture"].data()["x"][::3]}),
    "nested": (nested, {"y": np.random.default_rng(0).normal(size=(2, 4, 3)), "x": np.arange(4.0)}),
    "scalar": (scalar, {"y": torch.tensor(0.5)}),
}


@pytest.fixture(scope="module")
def fits():
    return {(m, e): fit(*MADE[m], engine, seed=1) for m in MADE for e, engine in ENGINES.items()}


@pytest.fixture(scope="module")
def trees(fits):
    return {key: value.to_datatree(**EVERYTHING) for key, value in fits.items()}


@pytest.fixture(params=[(m, e) for m in MADE for e in ENGINES], ids="-".join)
def key(request):
    return request.param


def test_groups(key, trees):
    expected = {"posterior", "sample_stats", "observed_data", "log_likelihood", "posterior_predictive"}
    expected |= {"prior", "prior_predictive", "unconstrained_posterior"}
    expected |= {"warmup_posterior", "warmup_sample_stats"} if key[1] == "nuts" else {"vi_trace"}
    expected |= {"constant_data"} if key[0] in ("eight_schools", "nested") else set()
    assert set(trees[key].children) == expected


def test_only_the_groups_asked_for(fits):
    expected = {"posterior", "sample_stats", "observed_data", "constant_data", "vi_trace"}
    assert set(fits["eight_schools", "svi"].to_datatree().children) == expected


def test_sample_stats_have_the_names_that_arviz_reads(key, trees):
    stats = trees[key]["sample_stats"]
    nuts = {"diverging": bool, "reached_max_treedepth": bool, "tree_depth": np.int64, "n_steps": np.int64}
    nuts |= dict.fromkeys(("energy", "lp", "acceptance_rate", "step_size"), np.float64)
    vi = dict.fromkeys(("lp", "log_q", "log_weight"), np.float64)
    expected = {"nuts": nuts, "svi": vi, "auto": {"lp": np.float64}}[key[1]]  # resampled draws have no weights left
    assert {name: array.dtype for name, array in stats.data_vars.items()} == expected
    for array in stats.data_vars.values():
        assert (array.dims, array.shape) == (("chain", "draw"), (2, 100))
    if key[1] == "svi":
        np.testing.assert_allclose(stats["log_weight"], stats["lp"] - stats["log_q"])


def test_every_engine_gives_the_same_posterior_shapes(trees):
    for model in MADE:
        shapes = [variables(trees[model, engine]["posterior"]) for engine in ENGINES]
        assert shapes[0] == shapes[1] == shapes[2]


def test_dims_come_from_the_plates(trees):
    sample = ("chain", "draw")
    assert variables(trees["eight_schools", "nuts"]["posterior"]) == {
        "mu": (sample, (2, 100)),
        "tau": (sample, (2, 100)),
        "theta_trans": ((*sample, "school"), (2, 100, 8)),
        "theta": ((*sample, "school"), (2, 100, 8)),
    }
    assert variables(trees["nested", "nuts"]["posterior"]) == {
        "single": ((*sample, "single_dim_0"), (2, 100, 1)),  # size one, not squeezed
        "a": ((*sample, "outer", "a_dim_1"), (2, 100, 2, 1)),
        "z": ((*sample, "outer", "inner", "z_dim_2"), (2, 100, 2, 4, 3)),
        "shifted": ((*sample, "outer", "inner"), (2, 100, 2, 4)),
    }
    assert variables(trees["scalar", "nuts"]["posterior"]) == {"mu": (sample, (2, 100))}
    assert variables(trees["gaussian_mixture", "nuts"]["posterior"]) == {
        "weights": ((*sample, "weights_dim_0"), (2, 100, 2)),
        "loc": ((*sample, "loc_dim_0"), (2, 100, 2)),
        "scale": ((*sample, "component"), (2, 100, 2)),
        "assignment": ((*sample, "data"), (2, 100, 50)),
    }
    assert trees["gaussian_mixture", "nuts"]["posterior"]["assignment"].dtype == np.int64


def test_other_groups_have_the_same_dims(key, trees):
    tree = trees[key]
    posterior, observed = variables(tree["posterior"]), variables(tree["observed_data"])
    assert {name: (dims, (1, 500, *shape[2:])) for name, (dims, shape) in posterior.items()} == variables(tree["prior"])
    for group, lead in (("posterior_predictive", (2, 100)), ("prior_predictive", (1, 500))):
        assert variables(tree[group]) == {
            name: (("chain", "draw", *dims), (*lead, *shape)) for name, (dims, shape) in observed.items()
        }
    for name, array in tree["log_likelihood"].data_vars.items():
        assert array.dims[2:] == tree["observed_data"][name].dims[: array.ndim - 2]  # event dims are summed
        assert np.isfinite(array).all()


def test_observed_data_are_observations_only(trees):
    for engine in ENGINES:
        tree = trees["eight_schools", engine]
        assert list(tree["observed_data"].data_vars) == ["y"]  # not the deterministic theta
        np.testing.assert_array_equal(tree["observed_data"]["y"], MADE["eight_schools"][1]["y"])
        assert variables(tree["constant_data"]) == {"sigma": (("school",), (8,))}
        posterior = tree["posterior"]
        expected = posterior["mu"] + posterior["tau"] * posterior["theta_trans"]
        np.testing.assert_allclose(posterior["theta"], expected.transpose(*posterior["theta"].dims))
    assert variables(trees["nested", "auto"]["constant_data"]) == {"x": (("inner",), (4,))}


def test_draws_and_unconstrained_draws_are_those_of_the_fit(key, fits, trees):
    for name, value in fits[key].draws.items():
        np.testing.assert_array_equal(trees[key]["posterior"][name], value)
    flat = trees[key]["unconstrained_posterior"]["unconstrained"]
    np.testing.assert_array_equal(flat, fits[key].state["unconstrained"])
    assert flat.coords["coordinate"].values.tolist() == fits[key].state["labels"]


def test_warmup_is_kept_on_request_only(trees):
    tree = trees["eight_schools", "nuts"]
    assert tree["warmup_posterior"]["unconstrained"].shape == (2, 100, 10)
    assert set(tree["warmup_sample_stats"].data_vars) == set(tree["sample_stats"].data_vars)
    assert not np.array_equal(tree["warmup_sample_stats"]["step_size"], tree["sample_stats"]["step_size"])


def test_vi_trace(fits, trees):
    trace = trees["eight_schools", "svi"]["vi_trace"]
    assert variables(trace) == {"loss": (("step",), (200,)), "gradient_norm": (("step",), (200,))}
    np.testing.assert_array_equal(trace["loss"], fits["eight_schools", "svi"].history["loss"])


def test_attributes_say_how_it_was_made(key, fits, trees):
    attributes = trees[key].attrs
    assert attributes["method"] == ("mcmc" if key[1] == "nuts" else "vi")
    assert attributes["engine"] == repr(ENGINES[key[1]])
    assert attributes["seed"] == 1
    assert attributes["status"].startswith(fits[key].status.kind)
    assert attributes["inference_library"] == "ppl-verdict"
    assert attributes["sampling_time"] > 0
    assert attributes["num_gradients"] == fits[key].num_gradients > 0
    assert {"backend", "notes", "pyro_version", "torch_version", "inference_library_version"} <= set(attributes)


# --- labels ---------------------------------------------------------------------------------------------------------


def test_labels_of_the_model_are_used_and_can_be_overridden(fits, trees):
    for engine in ENGINES:
        tree = trees["eight_schools", engine]
        for group in ("posterior", "observed_data", "log_likelihood", "prior", "posterior_predictive"):
            assert tree[group].coords["school"].values[0] == "Choate"
    tree = fits["eight_schools", "svi"].to_datatree(coords={"school": list("abcdefgh")})
    assert tree["posterior"]["theta"].sel(school="c").shape == (2, 100)
    assert tree["observed_data"].coords["school"].values.tolist() == list("abcdefgh")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coords": {"school": ["a", "b"]}}, r"coords\['school'\]: expected 8 labels, got 2"),
        ({"coords": {"scool": list("abcdefgh")}}, r"coords: there is no dim 'scool'; the dims are .*school"),
        ({"dims": {"thetaa": ["who"]}}, r"dims: there is no site 'thetaa'; the sites are .*theta"),
        ({"dims": {"theta": ["who", "what"]}}, r"dims\['theta'\]: expected 1 different names .*\['school'\]"),
        ({"dims": {"mu": ["who"]}}, r"dims\['mu'\]: expected 0 "),
    ],
)
def test_labels_that_do_not_fit_are_refused(options, message, fits):
    with pytest.raises(InputError, match=message):
        fits["eight_schools", "svi"].to_datatree(**options)


def test_dims_can_be_renamed(fits):
    tree = fits["nested", "svi"].to_datatree(
        dims={"z": ["block", "plot", "trait"], "y": ["block", "plot", "trait"]},
        coords={"trait": ["height", "width", "depth"], "plot": [10, 20, 30, 40]},
        log_likelihood=True,
        posterior_predictive=True,
    )
    assert tree["posterior"]["z"].dims == ("chain", "draw", "block", "plot", "trait")
    assert tree["posterior"]["shifted"].dims == ("chain", "draw", "outer", "inner")
    assert tree["observed_data"]["y"].sel(trait="width", plot=20).dims == ("block",)
    assert tree["posterior_predictive"]["y"].dims == ("chain", "draw", "block", "plot", "trait")


# --- what ArviZ does with it ----------------------------------------------------------------------------------------


def test_netcdf(key, trees, tmp_path):
    assert round_trip(trees[key], tmp_path) == []


def test_the_round_trip_sees_a_difference(trees, tmp_path, monkeypatch):
    tree = trees["scalar", "svi"].copy()
    monkeypatch.setattr(xr, "open_datatree", lambda *_, **__: Changed(tree))
    assert round_trip(tree, tmp_path) == ["posterior"]


class Changed:
    """A context that gives a tree with other draws."""

    def __init__(self, tree):
        self.tree = tree.copy(deep=True)
        self.tree["posterior"]["mu"] = self.tree["posterior"]["mu"] + 1.0

    def __enter__(self):
        return self.tree

    def __exit__(self, *_):
        pass


def loo(tree, **options):
    with warnings.catch_warnings():  # 200 draws: some Pareto k are high, which is not what is tested
        warnings.filterwarnings("ignore", message="Estimated shape parameter of Pareto", category=UserWarning)
        return arviz_stats.loo(tree, **options)


def test_statistics(key, trees):
    tree = trees[key]
    names = [name for name in tree["posterior"].data_vars if name != "assignment"]  # constant where clusters are apart
    table = arviz_stats.summary(tree, var_names=names)
    assert len(table) == sum(tree["posterior"][name][0, 0].size for name in names)
    assert {"mean", "sd"} <= set(table.columns)
    for measure in (arviz_stats.rhat, arviz_stats.ess):
        assert set(measure(tree, var_names=names).data_vars) == set(names)
    if key[0] != "scalar":  # ArviZ warns of a single observation
        assert np.isfinite(loo(tree).elpd)
    if key[1] == "nuts":
        assert np.isfinite(arviz_stats.bfmi(tree)["energy"]).all()


PLOTS = ["plot_trace", "plot_rank", "plot_forest", "plot_pair", "plot_energy"]


@pytest.mark.parametrize("plot", PLOTS)
@pytest.mark.parametrize("engine", ENGINES)
def test_plots(plot, engine, trees):
    if plot == "plot_energy" and engine != "nuts":
        with pytest.raises((KeyError, ValueError, AttributeError)):
            arviz_plots.plot_energy(trees["eight_schools", engine], backend="matplotlib")
    else:
        options = {} if plot == "plot_energy" else {"var_names": ["mu", "tau"]}
        getattr(arviz_plots, plot)(trees["eight_schools", engine], backend="matplotlib", **options)
        assert plt.get_fignums()
    plt.close("all")


def hand_marginalised(tree):
    """log p(x_i given theta), (chain, draw, row), with the component summed out in numpy."""
    posterior, x = tree["posterior"], tree["observed_data"]["x"].values
    weights, loc, scale = (posterior[name].values[:, :, None] for name in ("weights", "loc", "scale"))
    return logsumexp(np.log(weights) + norm.logpdf(x[:, None], loc, scale), axis=-1)


@pytest.mark.parametrize("engine", ENGINES)
def test_loo_of_a_mixture_sums_out_the_assignments(engine, trees):
    tree = trees["gaussian_mixture", engine]
    values = hand_marginalised(tree)
    np.testing.assert_allclose(tree["log_likelihood"]["x"], values, rtol=1e-9)
    by_hand = tree.copy(deep=True)
    by_hand["log_likelihood"]["x"] = by_hand["log_likelihood"]["x"].copy(data=values)
    assert loo(tree).elpd == pytest.approx(loo(by_hand).elpd, rel=1e-9)
    # negative control: assignments from the prior, as az.from_pyro has them
    posterior, x = tree["posterior"], tree["observed_data"]["x"].values
    uniform = np.random.default_rng(0).uniform(size=values.shape)
    drawn = (uniform > posterior["weights"].values[:, :, :1]).astype(int)
    loc, scale = (np.take_along_axis(posterior[name].values, drawn, axis=-1) for name in ("loc", "scale"))
    assert importance_loo(norm.logpdf(x, loc, scale)) < importance_loo(values) - 20
    assert importance_loo(values) == pytest.approx(loo(tree).elpd, abs=1.0)


def importance_loo(log_likelihood):
    """Plain importance-sampling LOO of (chain, draw, row); ArviZ cannot smooth weights as wild as the control's."""
    return (np.log(log_likelihood[..., 0].size) - logsumexp(-log_likelihood, axis=(0, 1))).sum()


@pytest.mark.parametrize("engine", ENGINES)
def test_posterior_predictive_of_a_mixture_has_its_moments(engine, trees):
    tree = trees["gaussian_mixture", engine]
    weights, loc, scale = (tree["posterior"][name].values for name in ("weights", "loc", "scale"))
    drawn = tree["posterior_predictive"]["x"].values
    for power, moment in ((1, loc), (2, loc**2 + scale**2)):
        expected = (weights * moment).sum(axis=-1).mean()
        error = (drawn**power).std() / np.sqrt(drawn.size)
        assert abs((drawn**power).mean() - expected) < 4.5 * error
    # negative control: rows that kept their posterior assignments would be far more alike from draw to draw
    kept = np.take_along_axis(loc, tree["posterior"]["assignment"].values, axis=-1)
    assert drawn.var(axis=(0, 1)).mean() > 2 * (kept.var(axis=(0, 1)).mean() + (scale**2).mean())
