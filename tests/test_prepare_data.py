"""Data of every kind arrive as tensors; what only looks wrong is not refused."""

from functools import partial

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from inference import SVI, InputError, fit, isolated
from inference.validate import prepare_data
from tests.awkward_models import (
    ENGINES,
    Y,
    bounded_latent,
    coins,
    guide_of_mu_and_k,
    normal,
    poisson_latent,
    read,
    subsampled,
    with_param,
)

ACCEPTED = {
    "series": (normal, {"y": pd.Series(Y, index=[5, 6, 7])}),
    "nullable column": (normal, {"y": pd.Series(Y, dtype="Float64")}),
    "list": (normal, {"y": Y}),
    "tuple": (normal, {"y": tuple(Y)}),
    "integers": (normal, {"y": [1, 2, 4]}),
    "float32 tensor": (normal, {"y": torch.tensor(Y)}),
    "float16 array": (normal, {"y": np.array(Y, dtype=np.float16)}),
    "longdouble array": (normal, {"y": np.array(Y, dtype=np.longdouble)}),
    "big-endian array": (normal, {"y": np.array(Y, dtype=">f8")}),
    "reversed view": (normal, {"y": np.array(Y[::-1])[::-1]}),
    "tensor with gradient": (normal, {"y": torch.tensor(Y, requires_grad=True)}),
    "numpy integer setting": (normal, {"y": Y, "sigma": np.int64(2)}),
    "0-d setting": (normal, {"y": Y, "sigma": np.array(1.0)}),
    "un-plated data": (
        lambda y: pyro.sample("obs", dist.Normal(pyro.sample("mu", dist.Normal(0.0, 1.0)), 1.0), obs=y),
        {"y": Y},
    ),
    "keyword arguments": (lambda **data: normal(**data), {"y": Y}),
    "partial": (partial(normal, sigma=2.0), {"y": Y}),
    "handler": (poutine.scale(normal, scale=2.0), {"y": Y}),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_every_kind_of_column_arrives_as_the_same_tensor(name):
    model, data = ACCEPTED[name]
    sites = read(model, data)
    observed = sites.observations["obs"]
    assert observed.tolist() == Y
    assert not observed.requires_grad
    if name != "integers":
        assert observed.dtype == torch.float64


def test_prepared_data_are_copies():
    tensor, array = torch.ones(3, dtype=torch.float64), np.ones(3)
    with isolated(seed=1):
        prepared = prepare_data(lambda tensor, array: None, {"tensor": tensor, "array": array})
    tensor += 1
    array += 1
    assert all(value.tolist() == [1, 1, 1] for value in prepared.values())


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        (np.array([1, 2], dtype=np.uint8), torch.int64),  # torch indexes with uint8 as with a mask
        (np.array([1, 2], dtype=">i4"), torch.int64),
        ([True, False], torch.bool),
        ([1, 2], torch.int64),
        ([[1.0], [2.0]], torch.float64),
        (torch.ones(2, dtype=torch.float16), torch.float64),
    ],
    ids=str,
)
def test_dtypes(given, dtype):
    with isolated(seed=1):
        assert prepare_data(lambda y: None, {"y": given})["y"].dtype == dtype
    if dtype == torch.float64:
        with isolated(seed=1, dtype=torch.float32):
            assert prepare_data(lambda y: None, {"y": given})["y"].dtype == torch.float32


def test_what_is_no_array_is_left_alone():
    thing = object()
    with isolated(seed=1):
        data = {"a": "text", "b": None, "c": thing, "d": {"k": [1]}, "e": 3, "f": True, "g": ["x", "y"], "h": []}
        data |= {"i": [thing, thing], "j": (None,), "k": [{"l": 1}]}
        assert prepare_data(lambda **data: None, data) == data


def test_a_list_for_an_argument_whose_default_is_a_tuple_is_a_setting():
    def model(*, y, hidden=(5,)):
        pass

    with isolated(seed=1):
        prepared = prepare_data(model, {"y": [1, 2], "hidden": [20, 10]})
        assert prepared["hidden"] == (20, 10)
        assert isinstance(prepared["y"], torch.Tensor)
        assert prepare_data(model, {"y": [1], "hidden": (20,)})["hidden"] == (20,)
        assert isinstance(prepare_data(lambda y, hidden=5: None, {"y": 1, "hidden": [1]})["hidden"], torch.Tensor)


def moving_support(y):
    theta = pyro.sample("theta", dist.Gamma(2.0, 0.1))
    with pyro.plate("row", len(y)):
        pyro.sample("obs", dist.Uniform(0.0, theta), obs=y)


def test_support_that_moves_with_a_latent_is_not_refused():
    assert list(read(moving_support, {"y": Y}).latent) == ["theta"]
    result = fit(moving_support, {"y": Y}, ENGINES["nuts"])
    assert (result.draws["theta"] > max(Y)).all()
    with pytest.raises(InputError, match="'obs'"):  # a lower bound that does not move is still checked
        fit(lambda y: moving_support(-y), {"y": Y}, ENGINES["nuts"])


def test_masked_observations_may_lie_outside_the_support():
    def model(y, mask):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("row", len(y)):
            pyro.sample("obs", dist.Poisson(rate).mask(mask), obs=y)

    data = {"y": [3.0, -1.0], "mask": [True, False]}
    assert list(read(model, data).observed) == ["obs"]
    with pytest.raises(InputError, match="observed value -1.0 at index 1"):
        read(model, data | {"mask": [True, True]})


def test_a_mask_may_come_from_a_handler():
    def model(y, mask):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("row", len(y)), poutine.mask(mask=mask):
            pyro.sample("obs", dist.Poisson(rate), obs=y)

    assert list(read(model, {"y": [3.0, -1.0], "mask": [True, False]}).observed) == ["obs"]


def masked(y):
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("row", len(y)):
        pyro.sample("obs", dist.Poisson(rate).mask(y >= 0), obs=y)


def test_svi_steps_through_a_moving_support():
    try:
        result = fit(moving_support, {"y": Y}, ENGINES["svi"])
    except InputError:
        return
    assert result.status.kind in ("diverged", "budget_spent")


def test_svi_steps_past_masked_observations():
    assert np.isfinite(fit(masked, {"y": [3.0, -1.0]}, ENGINES["svi"]).draws["rate"]).all()


@pytest.mark.parametrize("y", [[1, 0], [True, False]], ids=["integers", "booleans"])
@pytest.mark.parametrize("engine", ["nuts", "svi"])
def test_coins_may_be_integers_or_booleans_or_are_refused(y, engine):
    try:
        result = fit(coins, {"y": y}, ENGINES[engine])
    except InputError as refusal:
        assert "'obs'" in str(refusal)  # noqa: PT017
    else:
        assert np.isfinite(result.draws["p"]).all()


@pytest.mark.parametrize(
    ("model", "engine"),
    [
        (subsampled, ENGINES["svi"]),
        (with_param, ENGINES["svi"]),
        (poisson_latent, SVI(num_steps=2, num_samples=4, num_chains=1, guide=guide_of_mu_and_k)),
        (bounded_latent, ENGINES["svi"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_svi_takes_what_nuts_refuses(model, engine):
    result = fit(model, {"y": Y}, engine)
    assert np.isfinite(result.draws["mu"]).all()
