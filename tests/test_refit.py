"""A fit of the same model to other data of the same shapes records nothing, and is right all the same."""

import copy
import types

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import config_enumerate

from inference import NUTS, fit
from inference import recorded as memo
from inference.density import Density
from inference.fingerprint import Unknown, fingerprint
from inference.isolation import isolated
from inference.recorded import MAX_KEPT, num_recordings
from inference.sites import read_sites
from inference.validate import prepare_data
from tests.zoo import CASES, SCHOOLS, schools

Y = torch.linspace(-1.0, 2.0, 6)
spread = 1.0  # a global of the models below
settings = types.ModuleType("settings_of_a_user")
settings.spread = 1.0


@pytest.fixture(autouse=True)
def own_state():
    memo.clear()
    with isolated(seed=1):
        yield
    memo.clear()


def build(model, data, **options):
    return Density(read_sites(model, prepare_data(model, data)), **options)


def recordings(model, data, **options):
    """The density and how many recordings it took."""
    before = num_recordings()
    density = build(model, data, **options)
    return density, num_recordings() - before


def at(density, num=5):
    return np.random.default_rng(0).uniform(-1.5, 1.5, size=(num, density.dim))


def assert_right(density):
    """The density equals eager Pyro's, not only where the recording was verified."""
    points = at(density)
    expected = [density.eager(torch.as_tensor(p)).item() for p in points]
    np.testing.assert_allclose(density.log_density(points), expected, rtol=1e-12)
    np.testing.assert_allclose([density.value_and_grad(p)[0] for p in points], expected, rtol=1e-12)


def other(data):
    """Other values of the same shapes; observations of zero and one change places."""
    binary = {name: set(value.unique().tolist()) <= {0.0, 1.0} for name, value in data.items()}
    return {name: 1 - value if binary[name] else 1.1 * value for name, value in data.items()}


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.recorded])
def test_a_refit_records_nothing_and_equals_a_fresh_fit(name):
    model, data = CASES[name].model, CASES[name].data
    first, count = recordings(model, data)
    assert count == 1
    refit, count = recordings(model, other(data))
    assert count == 0
    assert_right(refit)
    memo.clear()
    fresh, count = recordings(model, other(data))
    assert count == 1
    points = at(fresh)
    for got, expected in zip(refit.grad(points), fresh.grad(points), strict=True):
        np.testing.assert_array_equal(got, expected)
    assert not np.array_equal(first.log_density(points), refit.log_density(points))
    assert refit.graph.code == first.graph.code == fresh.graph.code  # what native code is cached by


def test_other_shapes_record_again():
    recordings(schools, SCHOOLS)
    shorter, count = recordings(schools, {name: value[:5] for name, value in SCHOOLS.items()})
    assert count == 1
    assert_right(shorter)


def count_model(y, group, offset, num_trials):
    rate = pyro.sample("rate", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Binomial(num_trials, logits=rate[group] + offset), obs=y)


def count_data(seed, **changed):
    g = torch.Generator().manual_seed(seed)
    y, group = (torch.randint(3, (8,), generator=g) for _ in range(2))
    return {"y": y.double(), "group": group, "offset": torch.randn((), generator=g), "num_trials": 4} | changed


def test_scalars_and_integers_are_inputs_but_numbers_are_constants():
    first, _ = recordings(count_model, count_data(1))
    again, count = recordings(count_model, count_data(2))
    assert count == 0
    assert again.graph.code == first.graph.code
    assert_right(again)
    more, count = recordings(count_model, count_data(2, num_trials=5))
    assert count == 1
    assert_right(more)


def read_maximum(y, group):
    effect = pyro.sample("effect", dist.Normal(torch.zeros(int(group.max()) + 1), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(effect[group], 1.0).to_event(1), obs=y)


def read_condition(y, group):
    scale = 2.0 if (group > 2).any() else 1.0
    pyro.sample("y", dist.Normal(pyro.sample("mu", dist.Normal(0.0, 1.0)), scale).expand([6]).to_event(1), obs=y)


def read_mask(y, group):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(mu, 1.0).expand([int((group > 0).sum())]).to_event(1), obs=y[group > 0])


def read_list(y, group):
    scale = float(len(set(group.tolist())))
    pyro.sample("y", dist.Normal(pyro.sample("mu", dist.Normal(0.0, 1.0)), scale).expand([6]).to_event(1), obs=y)


def read_array(y, group):
    scale = float(np.unique(group.numpy()).size)
    pyro.sample("y", dist.Normal(pyro.sample("mu", dist.Normal(0.0, 1.0)), scale).expand([6]).to_event(1), obs=y)


def read_isnan(y, group):
    scale = 3.0 if torch.isnan(group / group.sum()).any() else float(group.double().mean().item())
    pyro.sample("y", dist.Normal(pyro.sample("mu", dist.Normal(0.0, 1.0)), scale).expand([6]).to_event(1), obs=y)


READERS = [read_maximum, read_condition, read_mask, read_list, read_array, read_isnan]


@pytest.mark.parametrize("model", READERS, ids=lambda m: m.__name__)
def test_data_that_are_read_are_constants(model):
    group, changed = torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([0, 1, 3, 0, 3, 1])
    first, _ = recordings(model, {"y": Y, "group": group})
    assert first.backend == "graph"
    again, count = recordings(model, {"y": Y + 1.0, "group": group.clone()})
    assert count == 0
    assert_right(again)
    for values, expected in ((changed, 1), (group, 0), (changed, 0)):  # both recordings are kept
        density, count = recordings(model, {"y": Y - 1.0, "group": values})
        assert (density.backend, count) == ("graph", expected)
        assert_right(density)


def test_a_latent_that_is_read_is_refused():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        keep = torch.stack([mu, -mu]) > 0
        pyro.sample("y", dist.Normal(torch.stack([mu, mu])[keep].sum(), 1.0), obs=y)

    density, count = recordings(model, {"y": torch.tensor(0.3)})
    assert (density.backend, count) == ("eager", 0)
    assert "value of a latent" in density.reason


def filled_in_a_loop(y):
    path = torch.zeros(len(y))
    path[0] = pyro.sample("start", dist.Normal(0.0, 1.0))
    decay = pyro.sample("decay", dist.Uniform(0.0, 1.0))
    for t in range(1, len(y)):
        path[t] = 0.5 * path[t - 1] + decay * y[t - 1]
    pyro.sample("y", dist.Normal(path, 1.0).to_event(1), obs=y)


def test_tensors_that_are_filled_in_place():
    first, count = recordings(filled_in_a_loop, {"y": Y})
    assert (first.backend, count) == ("graph", 1)
    again, count = recordings(filled_in_a_loop, {"y": 2.0 * Y})
    assert count == 0
    for density in (first, again):
        assert_right(density)


def closing_over(scale):
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, scale))
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    def change(value):
        nonlocal scale
        scale = value

    return model, change


def test_a_changed_closure_records_again():
    model, change = closing_over(1.0)
    first, _ = recordings(model, {"y": Y})
    change(2.0)
    second, count = recordings(model, {"y": Y + 1.0})
    assert count == 1
    assert_right(second)
    change(1.0)
    assert recordings(model, {"y": Y})[1] == 0
    assert recordings(closing_over(2.0)[0], {"y": Y})[1] == 0  # equal code and closure: the same model


def test_a_tensor_of_the_closure_that_is_changed_in_place_records_again():
    scale = torch.tensor(1.0)
    model, _ = closing_over(scale)
    recordings(model, {"y": Y})
    scale += 1.0
    second, count = recordings(model, {"y": Y})
    assert count == 1
    assert_right(second)


def helper():
    return spread


def of_a_global(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(mu, helper()).expand([6]).to_event(1), obs=y)


def test_a_changed_global_records_again(monkeypatch):
    recordings(of_a_global, {"y": Y})
    monkeypatch.setitem(globals(), "spread", 2.0)
    second, count = recordings(of_a_global, {"y": Y})
    assert count == 1
    assert_right(second)


def of_something_hidden(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    scale = getattr(settings, "spr" + "ead")  # which no look at the code can tell
    pyro.sample("y", dist.Normal(mu, scale).expand([6]).to_event(1), obs=y)


def test_what_the_fingerprint_misses_the_verification_finds(monkeypatch):
    recordings(of_something_hidden, {"y": Y})
    assert recordings(of_something_hidden, {"y": Y + 1.0})[1] == 0
    monkeypatch.setattr(settings, "spread", 2.0)
    second, count = recordings(of_something_hidden, {"y": Y})
    assert (second.backend, count) == ("graph", 1)
    assert_right(second)
    assert recordings(of_something_hidden, {"y": Y + 1.0})[1] == 0  # the new recording has taken the old one's place


def test_without_the_verification_it_would_be_wrong(monkeypatch):
    recordings(of_something_hidden, {"y": Y})
    monkeypatch.setattr(settings, "spread", 2.0)
    monkeypatch.setattr(Density, "_verify", lambda *_: None)
    with pytest.raises(AssertionError, match="Not equal"):
        assert_right(build(of_something_hidden, {"y": Y}))


def test_a_small_change_beside_large_data_is_found(monkeypatch):
    y = 1e4 * torch.randn(1000)  # log density about -5e10; the prior changes it by about one

    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, getattr(settings, "spr" + "ead")))
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    recordings(model, {"y": y})
    monkeypatch.setattr(settings, "spread", 0.5)
    assert recordings(model, {"y": y})[1] == 1


def test_held_parameters_are_never_shared():
    def model(y):
        scale = pyro.param("scale", torch.tensor(1.0))
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu, scale).expand([6]).to_event(1), obs=y)

    recordings(model, {"y": Y}, hold_params=True)
    pyro.get_param_store()["scale"] = torch.tensor(2.0)
    second, count = recordings(model, {"y": Y}, hold_params=True)
    assert count == 1
    assert_right(second)


class Network(pyro.nn.PyroModule):
    def __init__(self):
        super().__init__()
        self.scale = 1.0

    def forward(self, y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu, self.scale).expand([6]).to_event(1), obs=y)


def test_objects_with_a_state_are_never_shared():
    network = Network()
    assert recordings(network, {"y": Y})[1] == 1
    assert recordings(network, {"y": Y})[1] == 1
    for value in (network, network.forward, object(), [object()]):
        with pytest.raises(Unknown):
            fingerprint(value)


def test_decorated_models_are_known_again():
    one = CASES["mixture_vectorised"].model
    assert fingerprint(copy.deepcopy(one)) == fingerprint(one)
    assert fingerprint(config_enumerate(schools)) != fingerprint(schools)


def test_data_are_shared_with_the_graph():
    y, x = torch.randn(100_000), torch.randn(100_000, 3)

    def model(x, y):
        coef = pyro.sample("coef", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Normal(x @ coef, 1.0), obs=y)

    for _ in range(2):  # recorded, and bound again
        density = build(model, {"x": x, "y": y})
        held = [buffer.untyped_storage() for buffer in density.graph.buffers()]
        large = {storage.data_ptr() for storage in held if storage.nbytes() >= y.nbytes}
        assert large == {tensor.untyped_storage().data_ptr() for tensor in density.sites.data.values()}
    (kept,) = memo._kept.values()
    assert kept.num_constants < 100


def test_memory_is_bounded():
    def of(loc):
        def model(y):
            pyro.sample("y", dist.Normal(pyro.sample("mu", dist.Normal(loc, 1.0)), 1.0), obs=y)

        return model

    y = torch.tensor(0.3)
    for i in range(MAX_KEPT + 3):
        recordings(of(float(i)), {"y": y})
    assert len(memo._kept) == MAX_KEPT
    assert recordings(of(float(MAX_KEPT)), {"y": y})[1] == 0
    assert recordings(of(0.0), {"y": y})[1] == 1  # the oldest has gone
    memo.clear()
    large = torch.linspace(-1e-6, 1e-6, memo.MAX_KEPT_NUMBERS + 1)

    def closing(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + (large * mu).sum(), 1.0), obs=y)

    recordings(closing, {"y": y})
    assert not memo._kept


def test_a_second_fit_records_no_density():
    engine = NUTS(num_warmup=50, num_samples=50, num_chains=1)
    for model, data in ((schools, SCHOOLS), (CASES["mixture_vectorised"].model, CASES["mixture_vectorised"].data)):
        first = fit(model, data, engine, seed=1)
        before = num_recordings()
        again = fit(model, data, engine, seed=1)
        assert num_recordings() == before
        for name, value in first.draws.items():
            np.testing.assert_array_equal(value, again.draws[name])
