"""A fit in one file: what comes back is what was saved, and reading executes nothing."""

import pickle
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints

from inference import NUTS, SVI, AutoVI, InputError, check, fit, isolated, load_fit
from inference.modes import search_modes
from inference.storage import SavedEngine
from ppl_models import MODELS

DATA = {"y": torch.tensor([1.0, 2.0, 4.0])}


def model(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    with pyro.plate("row", len(y)):
        pyro.deterministic("residual", y - mu)
        pyro.sample("y", dist.Normal(mu, scale), obs=y)


def guide(y):
    loc = pyro.param("loc", torch.zeros(2))
    width = pyro.param("width", torch.ones(2), constraint=constraints.positive)
    pyro.sample("mu", dist.Normal(loc[0], width[0]))
    pyro.sample("scale", dist.LogNormal(loc[1], width[1]))


def with_param(y):
    width = pyro.param("width", torch.tensor(1.0), constraint=constraints.positive)
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(mu, width), obs=y)


class Shifted(pyro.nn.PyroModule):
    def __init__(self):
        super().__init__()
        self.shift = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.width = pyro.nn.PyroParam(torch.ones((), dtype=torch.float64), constraint=constraints.positive)
        self.register_buffer("offset", torch.zeros((), dtype=torch.float64))

    def forward(self, y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Normal(mu + self.shift + self.offset, self.width), obs=y)


class Sampled(pyro.nn.PyroModule):
    """A module without parameters, which NUTS takes."""

    def __init__(self):
        super().__init__()
        self.mu = pyro.nn.PyroSample(dist.Normal(0.0, 5.0))
        self.register_buffer("offset", torch.ones((), dtype=torch.float64))

    def forward(self, y):
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Normal(self.mu + self.offset, 1.0), obs=y)


def short(**settings):
    return SVI(num_steps=100, num_samples=50, num_chains=2, **settings)


NUTS_SHORT = NUTS(num_warmup=60, num_samples=50, num_chains=2, save_warmup=True)
CASES = {
    "nuts": (model, DATA, NUTS_SHORT),
    "nuts_pyro": (model, DATA, NUTS(num_warmup=10, num_samples=10, num_chains=1, backend="pyro")),
    "nuts_module": (Sampled(), DATA, NUTS_SHORT),
    "svi": (model, DATA, short()),
    "svi_rmsprop": (model, DATA, short(optimizer=torch.optim.RMSprop)),
    "svi_partial": (model, DATA, short(optimizer=partial(torch.optim.Adam, betas=(0.8, 0.99)))),
    "svi_delta": (model, DATA, short(guide="delta")),
    "svi_float32": (model, DATA, short(dtype="float32")),
    "guide": (model, DATA, short(guide=guide)),
    "with_param": (with_param, DATA, short()),
    "module": (Shifted(), DATA, short()),
    "auto": (model, DATA, AutoVI(num_samples=50, num_chains=2, num_starts=2)),
    "mixture": (MODELS["gaussian_mixture"], MODELS["gaussian_mixture"].data(), short()),
}
# Engines with functions or objects among their settings cannot be made again from a file.
NOT_REMADE = ("svi_partial", "guide")


@pytest.fixture(scope="module", params=CASES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def original(name):
    return fit(*CASES[name], seed=5)


@pytest.fixture(scope="module")
def path(name, original, tmp_path_factory):
    return original.save(tmp_path_factory.mktemp("fits") / f"{name}.fit")


@pytest.fixture(scope="module")
def loaded(name, path):
    return load_fit(path, CASES[name][0])


def assert_equal(one, other):
    """Nested mappings of arrays, tensors and plain values, dtypes included."""
    assert type(one) is type(other) or (isinstance(one, float) and isinstance(other, float))
    if isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, np.ndarray | torch.Tensor):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    else:
        assert one == other


@pytest.mark.parametrize("with_model", [True, False])
def test_everything_comes_back(name, original, path, with_model):
    again = load_fit(path, CASES[name][0] if with_model else None)
    for part in ("draws", "stats", "history", "data", "seconds", "status", "seed", "notes"):
        assert_equal(getattr(original, part), getattr(again, part))
    assert again.model is (CASES[name][0] if with_model else None)
    private = {"guide", "function", "params", "module"}
    for key in set(original.state) - private:
        assert_equal(original.state[key], again.state[key])
    assert (again.num_chains, again.num_draws) == (original.num_chains, original.num_draws)
    assert again.num_gradients == original.num_gradients


def test_the_comparison_sees_a_difference(original):
    name = next(iter(original.draws))
    with pytest.raises(AssertionError):
        assert_equal(original.draws, {**original.draws, name: original.draws[name] + 1e-3})
    with pytest.raises(AssertionError):
        assert_equal(original.draws, {**original.draws, "other": original.draws[name]})
    with pytest.raises(AssertionError):
        assert_equal(original.draws, {**original.draws, name: original.draws[name].astype(np.float16)})


def test_the_engine_comes_back(name, original, loaded):
    assert repr(loaded.engine) == repr(original.engine)
    assert loaded.engine.method == original.engine.method
    if name in NOT_REMADE:
        assert isinstance(loaded.engine, SavedEngine)
        with pytest.raises(InputError, match="was loaded from a file and cannot fit again"):
            fit(model, DATA, loaded.engine)
    else:
        assert loaded.engine == original.engine


def test_trees_are_equal(original, loaded):
    options = {"log_likelihood": True, "posterior_predictive": True, "unconstrained": True}
    one, other = original.to_datatree(**options), loaded.to_datatree(**options)
    assert one.attrs == other.attrs
    assert set(one.children) == set(other.children)
    for group in one.children:
        assert one[group].to_dataset().equals(other[group].to_dataset()), group


def test_verdicts_are_equal(original, loaded):
    assert repr(check(loaded)) == repr(check(original))  # as text, because nan != nan


@pytest.mark.parametrize("case", ["module", "with_param"])
def test_mode_searches_are_equal(case, tmp_path):
    result = fit(*CASES[case], seed=5)
    again = load_fit(result.save(tmp_path / "fit"), CASES[case][0])
    assert search_modes(again, num_starts=2) == search_modes(result, num_starts=2)


def test_parameters_are_equal(original, loaded):
    stores = []
    for value in (original, loaded):
        with value.restored():
            stores.append({name: p.detach().clone() for name, p in pyro.get_param_store().items()})
    assert set(stores[0]) == set(stores[1])
    for key, value in stores[0].items():
        torch.testing.assert_close(stores[1][key], value, rtol=1e-12, atol=0)


def test_saved_again_it_is_the_same(name, original, path, tmp_path):
    """Also by someone who does not have the model."""
    once = load_fit(path).save(tmp_path / "once")
    twice = load_fit(once, CASES[name][0]).save(tmp_path / "twice")
    again = load_fit(twice, CASES[name][0])
    assert_equal(original.draws, again.draws)
    assert repr(check(again)) == repr(check(original))


def test_without_the_model(name, original, path):
    again = load_fit(path)
    tree = again.to_datatree(unconstrained=True)
    assert tree["posterior"].to_dataset().equals(original.to_datatree()["posterior"].to_dataset())
    for group in ("log_likelihood", "posterior_predictive", "prior"):
        with pytest.raises(InputError, match="loaded without its model.*load_fit"):
            again.to_datatree(**{group: True})
    with pytest.raises(InputError, match="loaded without its model.*load_fit"), again.restored():
        pass


def test_a_module_of_the_caller_stays_as_it_was(tmp_path):
    trained = Shifted()
    with torch.no_grad():
        trained.shift.fill_(2.0)
    path = fit(trained, DATA, short()).save(tmp_path / "module")
    other = Shifted()
    again = load_fit(path, other)
    check(again)
    assert (other.shift.item(), other.width.item()) == (0.0, 1.0)
    with again.restored() as sites:
        sites.function(**sites.data)
        assert pyro.get_param_store()["shift"].item() > 1.0
        assert pyro.get_param_store()["width"].item() != 1.0


def with_network(network):
    def regression(x, y):
        mean = pyro.module("network", network)(x)[:, 0]
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Normal(mean, scale), obs=y)

    return regression


def test_a_network_in_a_closure_is_given_its_trained_weights(tmp_path):
    torch.manual_seed(0)
    regression = with_network(torch.nn.Linear(1, 1).double())
    result = fit(regression, {"x": [[1.0], [2.0], [3.0]], "y": [5.0, 6.0, 7.0]}, short(lr=0.1))
    path = result.save(tmp_path / "fit")
    network = torch.nn.Linear(1, 1).double()
    before = network.weight.item()
    again = load_fit(path, with_network(network))
    for one, other in zip(
        *(f.to_datatree(log_likelihood=True)["log_likelihood"]["y"].values for f in (result, again)), strict=True
    ):
        np.testing.assert_allclose(other, one, rtol=1e-9)
    assert repr(check(again)) == repr(check(result))
    assert network.weight.item() == before


def test_float32_stays_float32(tmp_path):
    again = load_fit(fit(*CASES["svi_float32"]).save(tmp_path / "fit"), model)
    with again.restored() as sites:
        assert torch.get_default_dtype() == torch.float32
        assert sites.observations["y"].dtype == torch.float32


class Thing:
    """Cannot be saved as plain data."""


@pytest.mark.parametrize(
    "extra",
    [Thing(), [Thing(), Thing()], ["a", Thing()], {"a": 1, "b": Thing()}, lambda x: x, np.dtype("f8")],
    ids=["thing", "things", "text and thing", "nested thing", "function", "dtype"],
)
def test_data_that_a_file_cannot_hold(extra, tmp_path):
    def needs_extra(y, extra):
        model(y)

    path = fit(needs_extra, {**DATA, "extra": extra}, short()).save(tmp_path / "fit")
    assert set(load_fit(path).data) == {"y"}
    with pytest.raises(InputError, match="does not take the data of this fit.*needs extra.*functools.partial"):
        load_fit(path, needs_extra)
    bound = load_fit(path, partial(needs_extra, extra=extra))
    assert bound.to_datatree(log_likelihood=True)["log_likelihood"]["y"].shape == (2, 50, 3)


@pytest.mark.parametrize(
    "extra",
    [1, 2.5, True, None, "text", ["a", "b"], {"k": [1, "x"]}, torch.ones(2), [torch.ones(1), torch.ones(2)]],
    ids=repr,
)
def test_data_that_a_file_can_hold(extra, tmp_path):
    def takes_extra(y, extra):
        model(y)

    result = fit(takes_extra, {**DATA, "extra": extra}, short())
    again = load_fit(result.save(tmp_path / "fit"), takes_extra)
    assert repr(again.data["extra"]) == repr(result.data["extra"])


def test_files_that_are_no_fits(tmp_path):
    with pytest.raises(InputError, match=r"path: no file .*missing"):
        load_fit(tmp_path / "missing")
    with pytest.raises(InputError, match="path: no file"):
        load_fit(tmp_path)
    contents = {
        "text": b"this is no fit",
        "empty": b"",
        "pickle": pickle.dumps({"format": 1}),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    torch.save([1, 2], tmp_path / "list")
    torch.save({"weights": torch.ones(2)}, tmp_path / "weights")
    torch.save({"format": 1}, tmp_path / "incomplete")
    for name in (*contents, "list", "weights", "incomplete"):
        with pytest.raises(InputError, match=rf"path: .*{name} is not a fit written by Fit.save"):
            load_fit(tmp_path / name)
    torch.save({"format": 99}, tmp_path / "newer")
    with pytest.raises(InputError, match="has format 99, this version reads 1"):
        load_fit(tmp_path / "newer")


def test_reading_executes_nothing(tmp_path):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    path = fit(model, DATA, short()).save(tmp_path / "fit")
    saved = torch.load(path, weights_only=True)  # as it stands it needs no code
    torch.save({**saved, "notes": Payload()}, path)
    with pytest.raises(InputError, match="is not a fit"):
        load_fit(path, model)
    assert not (tmp_path / "executed").exists()
    torch.load(path, weights_only=False)["notes"].close()  # negative control: the payload works
    assert (tmp_path / "executed").exists()


def test_no_folder(tmp_path):
    with pytest.raises(InputError, match="path: no folder .*nowhere; make it first"):
        fit(model, DATA, short()).save(tmp_path / "nowhere" / "fit")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda x: None, "does not take the data of this fit.*no argument 'y'"),
        (Sampled(), "not the module that was fitted"),
        ("model", "expected a Pyro function"),
    ],
)
def test_another_model_is_refused(other, message, tmp_path):
    path = fit(model, DATA, short()).save(tmp_path / "fit")
    with pytest.raises(InputError, match=message):
        load_fit(path, other)


def test_saving_touches_nothing(tmp_path):
    result = fit(with_param, DATA, short())
    pyro.clear_param_store()
    before = torch.get_rng_state()
    load_fit(result.save(tmp_path / "fit"), with_param)
    assert len(pyro.get_param_store()) == 0
    assert torch.equal(torch.get_rng_state(), before)
    with isolated(seed=0):
        assert len(pyro.get_param_store()) == 0
