from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroParam

from inference import SVI, InputError, fit, svi_loop
from inference.elbo import ELBOS
from inference.guides import GUIDES
from inference.isolation import isolated
from inference.stopping import Stages, improvement, plateaued
from ppl_models import MODELS
from tests.accuracy import assert_moments
from tests.zoo import CASES, SCHOOLS, mixture_tutorial, schools


# A Gaussian posterior with correlation, its means far from zero and its sds from 0.1: mean and covariance are known.
def line(x, y):
    intercept = pyro.sample("intercept", dist.Normal(0.0, 20.0))
    slope = pyro.sample("slope", dist.Normal(0.0, 20.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(intercept + slope * x, 2.5), obs=y)


_x = np.linspace(-1.0, 2.0, 20)
LINE = {"x": _x, "y": 40.0 - 30.0 * _x + 2.5 * np.random.default_rng(0).normal(size=20)}
_design = np.stack([np.ones_like(_x), _x], 1)
COVARIANCE = np.linalg.inv(_design.T @ _design / 6.25 + np.eye(2) / 400)
MEAN = COVARIANCE @ _design.T @ LINE["y"] / 6.25
# The best mean field has the true means and the conditional standard deviations.
MEAN_FIELD_SD = np.diag(np.linalg.inv(COVARIANCE)) ** -0.5
FULL_SD = np.diag(COVARIANCE) ** 0.5

NO_ROWS = np.empty((0, 0))
SMALL = {"num_samples": 500, "num_chains": 2}
# Optimiser noise left at the end of a run, in posterior sds.
BIAS = 0.15


def hand_guide(x, y):
    for name in ("intercept", "slope"):
        loc = pyro.param(f"{name}_loc", torch.tensor(0.0))
        scale = pyro.param(f"{name}_scale", torch.tensor(1.0), constraint=constraints.positive)
        pyro.sample(name, dist.Normal(loc, scale))


class ModuleGuide(PyroModule):
    def __init__(self):
        super().__init__()
        self.loc = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
        self.scale = PyroParam(torch.ones(2, dtype=torch.float64), constraint=constraints.positive)

    def forward(self, x, y):
        pyro.sample("intercept", dist.Normal(self.loc[0], self.scale[0]))
        pyro.sample("slope", dist.Normal(self.loc[1], self.scale[1]))


def assert_line(result, sd):
    assert result.status.ok, result.status
    for i, name in enumerate(("intercept", "slope")):
        assert_moments(result.draws[name], MEAN[i], sd[i], bias=BIAS)


@pytest.mark.parametrize(
    ("guide", "sd"),
    [
        ("normal", MEAN_FIELD_SD),
        (hand_guide, MEAN_FIELD_SD),
        (ModuleGuide(), MEAN_FIELD_SD),
        ("multivariate_normal", FULL_SD),
        ("laplace", FULL_SD),
    ],
    ids=["by name", "by hand", "module", "full rank", "laplace"],
)
def test_recovers_the_exact_posterior_of_its_family(guide, sd):
    result = fit(line, LINE, SVI(guide=guide, **SMALL), seed=1)
    assert_line(result, sd)
    # guides by name start at the mode with a scale of 0.1, the others 40 units away
    fallen = result.history["loss"][:20].mean() - result.history["loss"][-20:].mean()
    assert fallen > (1 if isinstance(guide, str) else 100) or guide == "laplace"


def test_an_untrained_guide_fails_the_same_check():
    result = fit(line, LINE, SVI(num_steps=20, lr=1e-4, **SMALL), seed=1)
    with pytest.raises(AssertionError):
        assert_line(result, MEAN_FIELD_SD)


# To record the larger flows takes longer than to run them.
BY_NAME = [pytest.param(g, marks=pytest.mark.slow) if g in ("spline", "realnvp") else g for g in GUIDES]


@pytest.mark.parametrize("guide", BY_NAME)
def test_every_guide_by_name_runs(guide):
    result = fit(schools, SCHOOLS, SVI(guide=guide, num_steps=30, **SMALL), seed=1)
    assert set(result.draws) == {"mu", "tau", "z", "theta"}
    point = guide == "delta"
    assert ("log_weight" in result.stats) != point
    assert bool(result.notes) == point


@pytest.mark.parametrize("guide", ["normal", "multivariate_normal", "low_rank", "iaf"])
def test_log_weights_average_to_the_bound(guide):
    """The optimiser's own losses and the log weights of the draws estimate one ELBO, by two routes."""
    result = fit(line, LINE, SVI(guide=guide, num_steps=300, lr=1e-12, **SMALL), seed=1)
    losses = result.history["loss"]
    error = np.hypot(losses.std() / np.sqrt(len(losses)), result.state["elbo_se"])
    assert abs(-losses.mean() - result.state["elbo"]) < 4.5 * error


@pytest.mark.parametrize("elbo", [*ELBOS, Trace_ELBO(num_particles=3)], ids=[*ELBOS, "object"])
def test_every_elbo_by_name_runs(elbo):
    result = fit(line, LINE, SVI(elbo=elbo, num_particles=2, num_steps=30, **SMALL), seed=1)
    assert np.isfinite(result.history["loss"]).all()


@pytest.mark.parametrize("elbo", [None, "trace_enum", TraceEnum_ELBO(max_plate_nesting=1)])
def test_discrete_sites_are_summed_out(elbo):
    result = fit(mixture_tutorial, CASES["mixture_tutorial"].data, SVI(elbo=elbo, num_steps=400, **SMALL), seed=1)
    assert set(result.draws) == {"weights", "loc", "assignment"}
    share = result.draws["assignment"].mean((0, 1))
    assert share[:20].max() < 0.2
    assert share[20:].min() > 0.8


def test_a_guide_may_sample_the_discrete_site_itself():
    def guide(y):
        concentration = pyro.param("c", torch.ones(2) * 5, constraint=constraints.positive)
        pyro.sample("weights", dist.Dirichlet(concentration))
        loc = pyro.param("means", torch.tensor([-3.0, 3.0]))
        with pyro.plate("component", 2):
            pyro.sample("loc", dist.Normal(loc, 0.2))
        probs = pyro.param("p", torch.full((len(y),), 0.5), constraint=constraints.unit_interval)
        with pyro.plate("data", len(y)):
            pyro.sample("assignment", dist.Categorical(torch.stack([1 - probs, probs], -1)))

    result = fit(mixture_tutorial, CASES["mixture_tutorial"].data, SVI(guide=guide, num_steps=50, **SMALL), seed=1)
    # the site is sampled after the continuous ones, so these keep their own density, and log weights are marginal
    assert np.isfinite(result.stats["log_weight"]).all()
    assert result.draws["assignment"].shape == (2, 500, 40)


OPTIMISERS = {
    "torch class": {"optimizer": torch.optim.Adam, "lr": 0.1},
    "partial": {"optimizer": partial(torch.optim.RMSprop, alpha=0.9), "lr": 0.05},
    "pyro": {"optimizer": pyro.optim.ClippedAdam({"lr": 0.1})},
    "pyro schedule": {
        "optimizer": pyro.optim.ExponentialLR(
            {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "gamma": 0.998}
        )
    },
    "schedule": {"lr": 0.1, "lr_schedule": partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.998)},
    "clipped": {"lr": 0.1, "clip_norm": 10.0},
}


@pytest.mark.parametrize("options", OPTIMISERS.values(), ids=OPTIMISERS)
def test_any_optimiser(options):
    result = fit(line, LINE, SVI(num_steps=700, num_particles=2, **options, **SMALL), seed=1)
    for i, name in enumerate(("intercept", "slope")):
        assert abs(result.draws[name].mean() - MEAN[i]) < FULL_SD[i]


def test_clipping_bounds_the_total_norm():
    step = partial(torch.optim.SGD, momentum=0.0)
    free = fit(line, LINE, SVI(guide=hand_guide, optimizer=step, lr=1e-3, num_steps=1, **SMALL), seed=1)
    clipped = fit(
        line, LINE, SVI(guide=hand_guide, optimizer=step, lr=1e-3, num_steps=1, clip_norm=1.0, **SMALL), seed=1
    )
    assert free.history["gradient_norm"][0] > 50
    moved = [
        np.concatenate([p.detach().numpy().ravel() for p in f.state["params"]["params"].values()])
        for f in (free, clipped)
    ]
    start = fit(line, LINE, SVI(guide=hand_guide, optimizer=step, lr=1e-12, num_steps=1, **SMALL), seed=1)
    at = np.concatenate([p.detach().numpy().ravel() for p in start.state["params"]["params"].values()])
    assert np.linalg.norm(moved[1] - at) == pytest.approx(1e-3, rel=1e-2)
    assert np.linalg.norm(moved[0] - at) > 0.05


def test_a_schedule_lowers_the_rate():
    from inference.optimise import make_stepper

    stepper = make_stepper(
        torch.optim.Adam, lr=1.0, schedule=partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5), clip_norm=None
    )
    p = torch.zeros(1, requires_grad=True)
    for _ in range(3):
        p.grad = torch.ones(1)
        stepper.step([p])
    assert stepper.optimizer.param_groups[0]["lr"] == pytest.approx(0.125)


def test_the_callers_module_and_optimiser_are_not_trained():
    guide, optimiser = ModuleGuide(), pyro.optim.Adam({"lr": 0.1})
    result = fit(line, LINE, SVI(guide=guide, optimizer=optimiser, num_steps=50, **SMALL), seed=1)
    assert torch.equal(guide.loc, torch.zeros(2, dtype=torch.float64))
    assert optimiser.optim_objs == {}
    assert not torch.equal(result.state["guide"].loc, guide.loc)  # control: the copy was trained


def test_status_of_a_run_that_was_cut_short():
    result = fit(line, LINE, SVI(guide=hand_guide, num_steps=100, **SMALL), seed=1)
    assert result.status.kind == "budget_spent"
    assert "still improving" in result.status.message
    few = fit(line, LINE, SVI(guide=hand_guide, num_steps=5, **SMALL), seed=1)
    assert "Ran 5 steps, too few to see" in few.status.message


def natural_units(y):
    mu = pyro.sample("mu", dist.Normal(250.0, 100.0))
    scale = pyro.sample("scale", dist.HalfNormal(100.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, scale), obs=y)


def far_guide(y):
    """Starts 250 units from the posterior, which steps of 0.02 do not cover."""
    loc = pyro.param("mu_loc", torch.tensor(0.0))
    pyro.sample("mu", dist.Normal(loc, pyro.param("mu_sd", torch.tensor(1.0), constraint=constraints.positive)))
    at = pyro.param("scale_loc", torch.tensor(4.0))
    pyro.sample("scale", dist.LogNormal(at, pyro.param("scale_sd", torch.tensor(0.1), constraint=constraints.positive)))


def test_a_plateau_far_from_the_posterior_is_not_convergence():
    data = {"y": 261 + 78 * np.random.default_rng(0).normal(size=71)}
    near = fit(natural_units, data, SVI(**SMALL), seed=1)
    assert near.status.kind == "converged"
    assert abs(near.draws["mu"].mean() - data["y"].mean()) < 5
    far = fit(natural_units, data, SVI(guide=far_guide, **SMALL), seed=1)
    assert abs(far.draws["mu"].mean() - data["y"].mean()) > 50
    assert far.status.kind == "budget_spent"


def test_status_of_a_run_that_diverges():
    def model(y):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x.exp().exp(), 1.0), obs=y)

    result = fit(
        model, {"y": torch.tensor(0.3)}, SVI(optimizer=torch.optim.SGD, lr=10.0, num_steps=200, **SMALL), seed=1
    )
    assert result.status.kind == "diverged"
    assert "lower lr" in result.status.message.lower()
    assert not result.status.ok


def test_wrong_guides_are_refused_by_name():
    def missing(x, y):
        pyro.sample("intercept", dist.Normal(0.0, 1.0))

    def extra(x, y):
        hand_guide(x, y)
        pyro.sample("other", dist.Normal(0.0, 1.0))

    def shape(x, y):
        pyro.sample("intercept", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("slope", dist.Normal(0.0, 1.0))

    def arguments(x):
        hand_guide(x, None)

    def tied(x, y):
        zero = torch.tensor(0.0)
        for name in ("intercept", "slope"):
            pyro.sample(name, dist.Normal(pyro.param(f"{name}_loc", zero), 1.0))

    for guide, message in (
        (tied, "params 'intercept_loc' and 'slope_loc' share one tensor"),
        (missing, "does not sample the latent site 'slope'"),
        (extra, "samples 'other'"),
        (shape, r"site 'intercept' has shape \(3,\)"),
        (arguments, "does not take y"),
        ("gaussian_typo", "expected one of delta, normal"),
    ):
        with pytest.raises(InputError, match=message):
            fit(line, LINE, SVI(guide=guide, num_steps=5), seed=1)


def test_an_estimator_that_cannot_sum_out_is_refused():
    for elbo in ("trace", Trace_ELBO()):
        with pytest.raises(InputError, match="cannot sum out the discrete site 'assignment'"):
            fit(mixture_tutorial, CASES["mixture_tutorial"].data, SVI(elbo=elbo), seed=1)


def test_model_params_are_fitted_by_maximum_likelihood():
    def model(y):
        scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, scale), obs=y)

    y = 5.0 + 3.0 * np.random.default_rng(1).normal(size=200)
    result = fit(model, {"y": y}, SVI(lr=0.1, num_steps=600, **SMALL), seed=1)
    with result.restored():
        assert pyro.param("scale").item() == pytest.approx(y.std(), rel=0.05)
    assert np.isfinite(result.stats["log_weight"]).all()


def test_single_precision_on_request_and_for_networks():
    single = fit(line, LINE, SVI(num_steps=50, dtype="float32", **SMALL), seed=1)
    assert single.state["dtype"] is torch.float32
    assert SVI(guide=torch.nn.Linear(2, 2)).floating_dtype(line) is torch.float32
    assert SVI(guide=AutoNormal(line)).floating_dtype(line) is torch.float64


def test_a_guide_object_that_has_never_run_can_be_used_again():
    """Pyro's guides forget their model when they are copied; neither the copy nor the caller's may."""
    guide = AutoNormal(line)
    one, again = (fit(line, LINE, SVI(guide=guide, num_steps=50, **SMALL), seed=1) for _ in range(2))
    np.testing.assert_array_equal(one.draws["slope"], again.draws["slope"])
    assert guide.prototype_trace is None
    with isolated(1):
        guide(**{name: torch.as_tensor(value) for name, value in LINE.items()})


def test_hand_written_guides_of_the_models():
    for name in ("normal_mean", "gaussian_mixture"):
        model = MODELS[name]
        result = fit(model, model.data(), SVI(guide=model.guide, num_steps=100, **SMALL), seed=1)
        assert np.isfinite(result.stats["log_weight"]).all()


def test_plateau_rule():
    rng = np.random.default_rng(0)
    falling = np.linspace(100, 0, 400) + rng.normal(size=400)
    flat = rng.normal(size=400)
    assert not plateaued(falling, 100)
    assert plateaued(flat, 100)
    assert not plateaued(flat[:150], 100)
    gain, error = improvement(falling, 100)
    assert gain == pytest.approx(25, abs=4.5 * error)
    # a constant, noiseless loss has no improvement
    assert plateaued(np.zeros(200), 100)


def test_stages_end_only_at_plateaus():
    stages = Stages(window=50)
    assert not any(stages.step([float(-i)], NO_ROWS) for i in range(1000))
    rng = np.random.default_rng(0)
    steps = 0
    while not stages.finished:
        stages.step([float(rng.normal())], NO_ROWS)
        steps += 1
        assert steps < 20_000
    assert stages.stage == Stages.NUM_STAGES


def test_a_gradient_that_is_not_finite_is_named():
    """The loss is finite, and the derivative of the root at zero is not."""

    def model(y):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x, 1.0), obs=y)

    def guide(y):
        offset = pyro.param("offset", torch.tensor(1.0))
        scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
        pyro.sample("x", dist.Normal((offset - 1.0).abs().sqrt() * 0.0, scale))

    with pytest.raises(InputError, match=r"site 'offset': .* first step .*gradient \[nan\]"):
        fit(model, {"y": torch.tensor(0.3)}, SVI(guide=guide, num_steps=20, **SMALL), seed=1)


def test_the_budget_of_a_run_that_stops_by_itself(monkeypatch):
    monkeypatch.setattr(svi_loop, "MAX_STEPS", 300)
    result = fit(line, LINE, SVI(guide=hand_guide, **SMALL), seed=1)
    assert result.status.kind == "budget_spent"
    assert "Ran 300 steps and is still improving (by" in result.status.message
    assert "leave it out" not in result.status.message
