"""Awkward names, plates and models on their way into a DataTree."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from inference import SVI, InputError, fit
from tests.netcdf import round_trip, variables

QUICK = SVI(num_steps=2, num_samples=4, num_chains=1)
EVERYTHING = {"log_likelihood": True, "posterior_predictive": True, "prior": True, "unconstrained": True}


def plated(plate, site="theta"):
    def model(x):
        with pyro.plate(plate, len(x)):
            theta = pyro.sample(site, dist.Normal(0.0, 1.0))
            pyro.sample("obs", dist.Normal(theta, 1.0), obs=2 * x)

    return model


@pytest.mark.parametrize(
    ("plate", "dim"),
    [("x", "x_plate"), ("chain", "chain_plate"), ("draw", "draw_plate"), ("coordinate", "coordinate"), ("a/b", "a.b")],
)
def test_plates_with_names_that_xarray_cannot_hold(plate, dim, tmp_path):
    result = fit(plated(plate), {"x": [1.0, 2.0, 3.0]}, QUICK)
    labels = {plate if plate != "a/b" else dim: ["p", "q", "r"]}
    tree = result.to_datatree(**EVERYTHING, coords=labels)
    for group in ("posterior", "observed_data", "constant_data", "log_likelihood", "prior_predictive"):
        for array in tree[group].data_vars.values():
            assert array.dims[-1] == dim
            assert array.coords[dim].values.tolist() == ["p", "q", "r"]
    assert round_trip(tree, tmp_path) == []


@pytest.mark.parametrize(
    ("site", "name"),
    [("lp", "lp"), ("draw", "draw_site"), ("scope/mu", "scope.mu"), ("unconstrained", "unconstrained")],
)
def test_sites_with_names_that_are_taken(site, name, tmp_path):
    result = fit(plated("row", site), {"x": [1.0, 2.0, 3.0]}, QUICK)
    tree = result.to_datatree(**EVERYTHING)
    assert variables(tree["posterior"]) == {name: (("chain", "draw", "row"), (1, 4, 3))}
    assert tree["sample_stats"]["lp"].dims == ("chain", "draw")
    assert round_trip(tree, tmp_path) == []


@pytest.mark.parametrize(
    "clash", [plated("theta"), lambda x: (plated("row", "a")(x), plated("row", "b")(x[:2]))], ids=["site", "two sizes"]
)
def test_a_plate_that_is_also_a_site_or_has_two_sizes_is_refused(clash):
    with pytest.raises(InputError, match="Multiple sample sites named '(theta|row)'"):
        fit(clash, {"x": [1.0, 2.0, 3.0]}, QUICK)


def test_deterministic_vectors_in_plates_have_the_dims_of_the_plates():
    def model(y):
        with pyro.plate("row", 2):
            theta = pyro.sample("theta", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.deterministic("twice", 2 * theta)
            pyro.deterministic("square", (2 * theta[:, :2]))  # as many columns as rows
            pyro.sample("y", dist.Normal(theta, 1.0).to_event(1), obs=y)

    posterior = fit(model, {"y": np.zeros((2, 3))}, QUICK).to_datatree()["posterior"]
    assert posterior["theta"].dims[2] == posterior["twice"].dims[2] == "row"
    assert posterior["square"].dims[3] != "row"


def test_a_model_without_observations_has_no_log_likelihood():
    def prior_only(scale=1.0):
        pyro.sample("mu", dist.Normal(0.0, scale))

    result = fit(prior_only, {}, QUICK)
    assert set(result.to_datatree().children) == {"posterior", "sample_stats", "vi_trace"}
    with pytest.raises(InputError, match="log_likelihood: the model has no observed site"):
        result.to_datatree(log_likelihood=True)


def test_unconstrained_draws_need_a_flat_density():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("row", len(y), subsample_size=2) as i:
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y[i])

    result = fit(model, {"y": [1.0, 2.0, 3.0]}, QUICK)
    assert "posterior" in result.to_datatree().children
    with pytest.raises(InputError, match="unconstrained: this fit has no unconstrained draws"):
        result.to_datatree(unconstrained=True)


def test_a_random_part_of_the_data_is_not_passed_off_as_the_data():
    def model(y, size=2):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("row", len(y), subsample_size=size) as i:
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y[i])

    part = fit(model, {"y": [1.0, 2.0, 3.0]}, QUICK)
    assert "observed_data" not in part.to_datatree().children
    for group in ("log_likelihood", "posterior_predictive", "prior"):
        with pytest.raises(InputError, match=f"{group}: plate 'row' is subsampled .2 of 3.*without subsample_size"):
            part.to_datatree(**{group: True})
    whole = fit(model, {"y": [1.0, 2.0, 3.0], "size": 3}, QUICK)
    assert whole.to_datatree(log_likelihood=True)["log_likelihood"]["y"].shape == (1, 4, 3)
