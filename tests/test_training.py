"""Training by mini-batches: what comes out of it, when it stops, and what it refuses."""

from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from inference import SVI, InputError, fit, load_fit
from tests.accuracy import assert_moments
from tests.training_models import (
    FEW,
    DynamicImages,
    LinearVae,
    X,
    assert_equal_params,
    images,
    network,
    params,
    regression,
    train,
)

# --- What comes out of it -------------------------------------------------------------------------------------------


def test_batches_reach_the_conjugate_posterior():
    generator = np.random.default_rng(0)
    x = generator.normal(size=1000)
    data = {"x": x, "y": 30.0 + 5 * x + 2 * generator.normal(size=1000)}
    precision = 0.01 + (x**2).sum() / 4
    mean, sd = (x * data["y"]).sum() / 4 / precision, precision**-0.5
    engine = SVI(
        guide="normal",
        batch_size=100,
        num_epochs=100,
        lr=0.1,
        lr_schedule=partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=1000),
        average=0.99,
    )
    result = fit(regression, data, engine, seed=1)
    assert_moments(result.draws["slope"], mean, sd, bias=0.2)
    assert "log_weight" in result.stats
    short = fit(regression, data, SVI(guide="normal", batch_size=100, num_epochs=1, lr=1e-4), seed=1)
    with pytest.raises(AssertionError):
        assert_moments(short.draws["slope"], mean, sd, bias=0.2)


def test_the_linear_vae_reaches_the_maximum_of_its_evidence():
    # probabilistic PCA (Tipping & Bishop 1999): the maximum follows from the eigenvalues; with one latent the guide
    # can be exact without turning the weights
    vae = LinearVae(latents=1)
    x = np.random.default_rng(3).normal(size=(400, 4)) @ np.diag([3.0, 1.0, 1.0, 1.0])
    first, *rest = np.linalg.eigvalsh(x.T @ x / len(x))[::-1]
    best = -200 * (4 * np.log(2 * np.pi) + np.log(first) + 3 * np.log(np.mean(rest)) + 4)
    schedule = partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=1000)
    options = {"batch_size": 50, "num_epochs": 125, "lr": 0.05, "lr_schedule": schedule, "dtype": "float64", **FEW}
    found = params(fit(vae.model, {"x": x}, SVI(guide=vae.guide, elbo="trace_mean_field", **options), seed=1))
    evidence = vae.log_evidence(x, found["w"].numpy(), np.exp(found["s"].item())).sum().item()
    assert best - 1 < evidence < best
    start = np.random.default_rng(0).normal(size=(4, 1))
    assert vae.log_evidence(x, start, 0.7).sum().item() < best - 100


def test_networks_learn_and_the_caller_keeps_untrained_ones():
    vae, data = network(), images()
    before = {name: p.clone() for name, p in vae.named_parameters()}
    state = torch.get_rng_state()
    result = train(vae, data, num_epochs=60, validation=0.2)
    bounds = result.history["validation_elbo"]
    assert result.history["validation_step"].tolist() == list(range(3, 181, 3))  # 160 rows in batches of 64
    assert len(result.history["loss"]) == 180
    assert bounds[-1] > bounds[0] + 2
    assert result.state["backend"].startswith("Trace_ELBO, recorded graph")
    assert result.draws["z"].dtype == np.float32
    assert all(torch.equal(p, before[name]) for name, p in vae.named_parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert len(pyro.get_param_store()) == 0
    assert result.to_datatree()["vi_trace"]["validation_elbo"].dims == ("evaluation",)
    with result.restored():
        result.state["guide"](x=torch.as_tensor(data["x"]))
        assert len(pyro.get_param_store()) == 8


def test_a_trained_fit_can_be_saved(tmp_path):
    result = train(network(), images())
    loaded = load_fit(result.save(tmp_path / "fit.pt"), network().model)
    np.testing.assert_array_equal(loaded.draws["z"], result.draws["z"])
    assert all(torch.equal(params(loaded)[name], value) for name, value in params(result).items())


class Holder:
    """Model and guide as methods of a plain object."""

    def __init__(self, vae):
        self.model, self.guide = vae.model, vae.guide


def test_random_masks_in_the_model_are_drawn_anew_at_each_step():
    vae = network(DynamicImages)
    data = {"x": np.random.default_rng(0).random((128, 64)) * 0.5 + 0.25}
    result = train(vae, data, lr=1e-9, num_epochs=100, elbo="trace_mean_field")
    assert "recorded graph" in result.state["backend"], result.notes
    # the order of the rows and the draws change, parameters do not: the loss of frozen masks would vary less
    eager = train(vae, data, lr=1e-9, num_epochs=100, elbo="trace_mean_field", backend="pyro")
    assert "eager Pyro" in eager.state["backend"]
    for mine, pyros in ((result, eager), (eager, result)):
        losses, others = mine.history["loss"], pyros.history["loss"]
        error = np.hypot(losses.std(), others.std()) / len(losses) ** 0.5
        assert abs(losses.mean() - others.mean()) < 4 * error
        assert 0.7 < losses.std() / others.std() < 1.4


def test_objects_with_bound_methods_and_vectorised_importance_weights():
    holder = Holder(network())
    result = train(holder, images(), elbo="iw", num_particles=5, num_epochs=20)
    assert "ImportanceWeighted, recorded graph" in result.state["backend"], result.notes
    losses = result.history["loss"]
    assert losses[-4:].mean() < losses[:4].mean() - 100


def test_bfloat16_products_leave_log_densities_in_float32():
    vae, data = network(), images()
    exact, mixed = (train(vae, data, mixed_precision=m, num_epochs=1, lr=1e-9) for m in (False, True))
    assert "recorded graph" in mixed.state["backend"], mixed.notes
    relative = np.abs(mixed.history["loss"] / exact.history["loss"] - 1)
    assert 0 < relative.max() < 0.005  # eps of bfloat16 is 0.008, averaged over 64 pixels
    assert params(mixed)["decoder$$$0.weight"].dtype == torch.float32


# --- When it stops --------------------------------------------------------------------------------------------------


def test_early_stopping_keeps_the_parameters_of_the_best_evaluation():
    x = np.random.default_rng(0).random((40, 64)) < 0.5  # nothing to learn but noise: it over-fits
    vae = network()
    result = train(vae, {"x": x.astype(float)}, batch_size=10, num_epochs=400, validation=0.5, patience=10, lr=0.03)
    bounds, steps = result.history["validation_elbo"], result.history["validation_step"]
    best = int(bounds.argmax())
    assert result.status.kind == "converged"
    assert len(bounds) == best + 1 + 10 < 400
    assert f"step {steps[best]}" in result.status.message
    kept = train(vae, {"x": x.astype(float)}, batch_size=10, num_steps=int(steps[best]), validation=0.5, lr=0.03)
    assert_equal_params(result, kept)
    on = train(vae, {"x": x.astype(float)}, batch_size=10, num_steps=int(steps[-1]), validation=0.5, lr=0.03)
    assert on.history["validation_elbo"][-1] < bounds[best] - 0.3  # what patience has spared


def test_validation_takes_other_data_with_the_rest_of_the_arguments():
    vae = network()
    given = train(vae, images(), validation={"x": images(30)["x"]}, validate_every=2, num_epochs=2)
    assert given.history["validation_step"].tolist() == [2, 4, 6, 8]
    # at the end in any case
    assert train(vae, images(), validation=0.25, num_steps=2).history["validation_step"].tolist() == [2]
    # the rows held out by a fraction are not trained on
    assert train(vae, images(), validation=0.25).state["training"]["rows"] == 150


def test_schedules_move_by_step_or_by_epoch():
    rates = []

    def watched(optimizer):
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        step = scheduler.step
        scheduler.step = lambda: (step(), rates.append(optimizer.param_groups[0]["lr"]))
        return scheduler

    train(network(), images(), num_epochs=2, lr_schedule=watched)
    assert len(rates) == 8
    rates.clear()
    train(network(), images(), num_epochs=2, lr_schedule=watched, lr_schedule_by="epoch")
    assert rates == [0.005, 0.0025]
    plateau = partial(torch.optim.lr_scheduler.ReduceLROnPlateau, patience=0)
    assert train(network(), images(), lr_schedule=plateau, lr_schedule_by="epoch", validation=0.1).status


def test_rates_fall_along_a_cosine_whatever_the_number_of_steps_is_given_by():
    by_epochs = train(network(), images(), num_epochs=3, lr_schedule="cosine")
    by_torch = partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=12)  # 200 pictures, batches of 64
    losses = train(network(), images(), num_epochs=3, lr_schedule=by_torch).history["loss"]
    np.testing.assert_allclose(by_epochs.history["loss"], losses, rtol=1e-5)
    assert_equal_params(by_epochs, train(network(), images(), num_steps=12, lr_schedule="cosine"))
    constant = train(network(), images(), num_epochs=3).history["loss"]
    assert not np.allclose(by_epochs.history["loss"], constant, rtol=1e-5)
    with pytest.raises(InputError, match="lr_schedule: expected 'cosine'"):
        SVI(num_steps=10, lr_schedule="linear")
    with pytest.raises(InputError, match="lr_schedule: expected 'cosine', by step"):
        SVI(num_epochs=1, batch_size=5, lr_schedule="cosine", lr_schedule_by="epoch")


def test_annealing_changes_the_loss_and_not_the_bound_on_held_out_rows():
    vae, weights = network(), []

    def ramp(step):
        weights.append(step)
        return min(1.0, step / 10)

    result = train(vae, images(), kl_weight=ramp, validation=0.2, lr=1e-9, elbo="trace_mean_field")
    assert weights == list(range(15))
    plain = train(vae, images(), validation=0.2, lr=1e-9, elbo="trace_mean_field")
    np.testing.assert_allclose(result.history["validation_elbo"], plain.history["validation_elbo"], rtol=1e-4)
    assert result.history["loss"][0] < plain.history["loss"][0] - 10


def repeated(*, x):
    """Gradients of the parameters repeat one number, or one row, or are transposed, or shared."""
    one = pyro.param("one", torch.zeros(3, 4))
    row = pyro.param("row", torch.zeros(3, 4))
    turned = pyro.param("turned", torch.zeros(4, 3))
    shared = [pyro.param(f"shared{i}", torch.zeros(2)) for i in range(2)]
    pyro.sample("z", dist.Normal(0.0, 1.0))
    loc = one.sum() + (row.sum(0) * torch.arange(4.0)).sum() + (turned.T * torch.arange(12.0).view(3, 4)).sum()
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc + ((shared[0] + shared[1]) * torch.tensor([1.0, -2.0])).sum(), 1.0), obs=x)


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_recorded_steps_move_parameters_as_pyro_does_whatever_the_layout_of_gradients(clip_norm):
    def guide(*, x):
        pyro.sample("z", dist.Delta(torch.tensor(0.0)))

    # eps in the denominator lets the size of the gradient count
    optimizer = partial(torch.optim.Adam, eps=10.0)
    options = {"batch_size": 4, "num_epochs": 2, "optimizer": optimizer, "clip_norm": clip_norm, "dtype": "float64"}
    one, other = (
        params(fit(repeated, {"x": X}, SVI(guide=guide, backend=b, **options, **FEW), seed=1)) for b in ("auto", "pyro")
    )
    assert one["one"].abs().min() > 0
    for name, value in other.items():
        torch.testing.assert_close(one[name], value)


# --- Checkpoints ----------------------------------------------------------------------------------------------------


class StopError(Exception):
    pass


def stopping_at(step):
    """A weight of the KL that is always one, and breaks the run off."""

    def weight(now):
        if now == step:
            raise StopError
        return 1.0

    return weight


@pytest.mark.parametrize("options", [{}, {"average": 0.9, "validation": 0.2, "clip_norm": 50.0}, {"backend": "pyro"}])
def test_a_resumed_run_is_the_unbroken_one(tmp_path, options):
    vae, data = network(DynamicImages), images()
    schedule = partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=20)
    options = {"lr_schedule": schedule, "checkpoint_every": 3, "num_epochs": 4, **options}
    whole = train(vae, data, checkpoint=tmp_path / "whole", kl_weight=stopping_at(-1), **options)
    with pytest.raises(StopError):  # in the middle of an epoch, two steps after a checkpoint
        train(vae, data, checkpoint=tmp_path / "broken", kl_weight=stopping_at(8), **options)
    newest = max(path.name for path in (tmp_path / "broken").iterdir())
    assert newest == "step-00000006.pt"
    options |= {"kl_weight": stopping_at(-1), "resume": True}
    resumed = train(vae, data, checkpoint=tmp_path / "broken", **options)
    assert_equal_params(resumed, whole)
    for name in whole.history:
        np.testing.assert_array_equal(resumed.history[name], whole.history[name])
    again = train(vae, data, **{**options, "resume": False, "checkpoint": tmp_path / "again", "clip_norm": 10.0})
    with pytest.raises(AssertionError):
        assert_equal_params(again, whole)


def test_a_finished_run_goes_on_to_more_epochs(tmp_path):
    vae, data = network(), images()
    whole = train(vae, data, num_epochs=4)
    train(vae, data, num_epochs=2, checkpoint=tmp_path)
    assert_equal_params(train(vae, data, num_epochs=4, checkpoint=tmp_path, resume=True), whole)


def test_checkpoints_of_another_run_are_refused(tmp_path):
    vae, data = network(), images()
    train(vae, data, num_epochs=1, checkpoint=tmp_path)
    with pytest.raises(InputError, match="resume=True"):
        train(vae, data, num_epochs=2, checkpoint=tmp_path)
    with pytest.raises(InputError, match="batch_size was 64 and is now 32"):
        train(vae, data, num_epochs=2, checkpoint=tmp_path, resume=True, batch_size=32)
    with pytest.raises(InputError, match="data was"):
        train(vae, {"x": 1 - data["x"]}, num_epochs=2, checkpoint=tmp_path, resume=True)
    newest = max(tmp_path.iterdir())
    newest.write_bytes(newest.read_bytes()[:100])
    with pytest.raises(InputError, match=f"{newest.name} cannot be read"):
        train(vae, data, num_epochs=2, checkpoint=tmp_path, resume=True)
