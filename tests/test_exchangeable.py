"""Which labels a model does not tell apart: found where they are, and only there."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.ops.indexing import Vindex

from inference.density import Density
from inference.exchangeable import exchangeable, generators
from inference.isolation import isolated
from inference.sites import read_sites
from inference.validate import model_function, prepare_data
from ppl_models import MODELS

Y = np.linspace(-2.0, 3.0, 12)
X = np.stack([Y, np.cos(3 * Y)], axis=1)


def hmm(y, K=3):
    initial = pyro.sample("initial", dist.Dirichlet(torch.ones(K)))
    with pyro.plate("state", K):
        transition = pyro.sample("transition", dist.Dirichlet(torch.ones(K)))
        loc = pyro.sample("loc", dist.Normal(0.0, 5.0))
    pyro.deterministic("stay", transition.diagonal(dim1=-2, dim2=-1))
    pyro.sample("y", dist.DiscreteHMM(initial.log(), transition.log(), dist.Normal(loc, 1.0)), obs=y)


def sticky_to_one(y, K=3):
    """As `hmm`, but the prior of a row likes the first state."""
    initial = pyro.sample("initial", dist.Dirichlet(torch.ones(K)))
    with pyro.plate("state", K):
        transition = pyro.sample("transition", dist.Dirichlet(torch.tensor([2.0, 1.0, 1.0])))
        loc = pyro.sample("loc", dist.Normal(0.0, 5.0))
    pyro.sample("y", dist.DiscreteHMM(initial.log(), transition.log(), dist.Normal(loc, 1.0)), obs=y)


def network(x, y, H=4):
    w = pyro.sample("w", dist.Normal(torch.zeros(x.shape[1], H), 1.0).to_event(2))
    v = pyro.sample("v", dist.Normal(torch.zeros(H), 1.0).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(torch.tanh(x @ w) @ v, 1.0), obs=y)


def two_groups(y, K=3):
    """Two mixtures of as many components each, whose locations add up."""
    weights = [pyro.sample(f"weights_{g}", dist.Dirichlet(torch.ones(K))) for g in "ab"]
    locs = []
    for g in "ab":
        with pyro.plate(g, K):
            locs.append(pyro.sample(f"loc_{g}", dist.Normal(0.0, 5.0)))
    with pyro.plate("data", len(y)):
        a, b = (
            pyro.sample(f"z_{g}", dist.Categorical(w), infer={"enumerate": "parallel"})
            for g, w in zip("ab", weights, strict=True)
        )
        pyro.sample("y", dist.Normal(Vindex(locs[0])[..., a] + 2 * Vindex(locs[1])[..., b], 1.0), obs=y)


def full_covariance(x, K=2):
    """As many features as components: axes of features must not be taken for axes of components."""
    D = x.shape[1]
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(K)))
    with pyro.plate("component", K):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(D), 3.0).to_event(1))
        scale = pyro.sample("scale", dist.LogNormal(torch.zeros(D), 1.0).to_event(1))
        chol = pyro.sample("chol", dist.LKJCholesky(D, 2.0))
    pyro.deterministic("precision", scale**-2)
    tril = scale.unsqueeze(-1) * chol
    with pyro.plate("data", len(x)):
        z = pyro.sample("assignment", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.MultivariateNormal(Vindex(loc)[..., z, :], scale_tril=Vindex(tril)[..., z, :, :]), obs=x)


def mixture(y, K=3, concentration=1.0, tilt=0.0):
    """``tilt`` makes the prior of the last weight another one."""
    prior = torch.full((K,), concentration)
    prior[-1] += tilt
    weights = pyro.sample("weights", dist.Dirichlet(prior))
    with pyro.plate("component", K):
        loc = pyro.sample("loc", dist.Normal(0.0, 5.0))
    with pyro.plate("data", len(y)):
        z = pyro.sample("assignment", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(Vindex(loc)[..., z], 1.0), obs=y)


def schools(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("school", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, 1.0))
        pyro.sample("y", dist.Normal(theta, 1.0), obs=y)


def groups_of(model, data, *, dtype=torch.float64):
    function = model_function(model)
    with isolated(0, dtype=dtype):
        density = Density(read_sites(function, prepare_data(function, data)))
        found = exchangeable(density)
        assert exchangeable(density) is found
        return {group.name: group for group in found}


def test_a_mixture():
    (group,) = groups_of(MODELS["gaussian_mixture_exchangeable"], {"x": Y, "K": 4}).values()
    assert (group.name, group.size) == ("component", 4)
    assert group.axes == {"weights": (0,), "loc": (0,), "scale": (0,)}
    assert group.labels == ("assignment",)
    assert np.isclose(group.log_copies, np.log(24.0))


def test_a_mixture_without_priors():
    """Flat priors have a density but cannot be drawn from."""
    (group,) = groups_of(MODELS["gaussian_mixture_exchangeable"], {"x": Y, "K": 3, "flat": True}).values()
    assert group.axes == {"weights": (0,), "loc": (0,), "scale": (0,)}
    assert group.labels == ("assignment",)


def test_both_axes_of_a_transition_matrix_and_what_follows_from_it():
    (group,) = groups_of(hmm, {"y": Y}).values()
    assert group.axes == {"transition": (0, 1), "loc": (0,), "initial": (0,), "stay": (0,)}
    assert group.labels == ("y_states",)


def test_components_without_a_plate():
    (group,) = groups_of(network, {"x": X, "y": Y}).values()
    assert group.axes == {"w": (1,), "v": (0,)}


def test_two_groups_of_one_size_are_two():
    found = groups_of(two_groups, {"y": Y})
    assert {name: set(group.axes) for name, group in found.items()} == {
        "a": {"loc_a", "weights_a"},
        "b": {"loc_b", "weights_b"},
    }
    assert {name: group.labels for name, group in found.items()} == {"a": ("z_a",), "b": ("z_b",)}


def test_features_are_no_components():
    (group,) = groups_of(full_covariance, {"x": X}).values()
    assert group.axes == dict.fromkeys(("weights", "loc", "scale", "chol", "precision"), (0,))


def test_rows_with_equal_data_are_exchangeable():
    (group,) = groups_of(schools, {"y": np.ones(4)}).values()
    assert group.axes == {"theta": (0,)}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_single_precision(dtype):
    assert "component" in groups_of(mixture, {"y": Y}, dtype=dtype)


@pytest.mark.parametrize(
    ("model", "data"),
    [
        (MODELS["gaussian_mixture"], {"x": Y, "K": 3}),
        (MODELS["eight_schools"], MODELS["eight_schools"].data()),
        (MODELS["logistic_regression"], MODELS["logistic_regression"].data()),
        (schools, {"y": np.array([1.0, 1.0, 2.0])}),  # the first two may be swapped, not all
        (mixture, {"y": Y, "tilt": 1e-6}),
        (sticky_to_one, {"y": Y}),
    ],
    ids=["ordered", "schools", "regression", "two of three", "prior", "sticky to one"],
)
def test_labels_that_mean_something_are_not_found(model, data):
    assert groups_of(model, data) == {}


def test_two_permutations_generate_all():
    """The closure of the two is the whole symmetric group."""
    pair = [tuple(order) for order in generators(4)]
    known = {tuple(range(4))}
    while True:
        more = known | {tuple(order[i] for i in g) for order in known for g in pair}
        if more == known:
            break
        known = more
    assert len(known) == 24


def test_values_of_labels_follow_their_components():
    (group,) = groups_of(mixture, {"y": Y}).values()
    loc = np.array([[10.0, 20.0, 30.0]])
    z = np.array([[0, 2, 1, 1]])
    moved = group.permuted({"loc": loc, "assignment": z, "other": loc}, np.array([[2, 0, 1]]))
    np.testing.assert_array_equal(moved["loc"], [[30.0, 10.0, 20.0]])
    np.testing.assert_array_equal(moved["loc"][0][moved["assignment"]], loc[0][z])
    np.testing.assert_array_equal(moved["other"], loc)
