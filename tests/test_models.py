"""Laws that every model of ppl_models obeys, driven by one table: a new model is a new row of SIZES."""

import inspect
import random

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from pyro.poutine.util import site_is_subsample

import ppl_models
from ppl_models import MODELS, Model
from ppl_models.simulation import own_stream

# Two sizes per model, neither of them the default; the second is the larger.
SIZES = {
    "normal_mean": [{"num_rows": 3}, {"num_rows": 40}],
    "beta_binomial": [{"num_groups": 2, "num_trials": 5}, {"num_groups": 9, "num_trials": 400}],
    "bayesian_linear_regression": [{"num_rows": 6, "num_covariates": 1}, {"num_rows": 60, "num_covariates": 7}],
    "eight_schools": [{"num_schools": 3}, {"num_schools": 20}],
    "eight_schools_centered": [{"num_schools": 3}, {"num_schools": 20}],
    "linear_regression": [{"num_rows": 5, "num_covariates": 1}, {"num_rows": 60, "num_covariates": 8}],
    "interaction_regression": [{"num_rows": 6}, {"num_rows": 60}],
    "logistic_regression": [{"num_rows": 5, "num_covariates": 1}, {"num_rows": 60, "num_covariates": 8}],
    "poisson_regression": [{"num_rows": 5, "num_covariates": 1}, {"num_rows": 60, "num_covariates": 8}],
    "gaussian_mixture": [{"num_rows": 7, "K": 1}, {"num_rows": 60, "K": 4}],
    "gaussian_mixture_exchangeable": [{"num_rows": 7, "K": 1}, {"num_rows": 60, "num_columns": 3, "K": 4}],
    "student_mixture": [{"num_rows": 7, "num_columns": None, "K": 1}, {"num_rows": 60, "num_columns": 3, "K": 4}],
    "bernoulli_mixture": [{"num_rows": 7, "K": 1}, {"num_rows": 60, "num_columns": 6, "K": 4}],
    "poisson_mixture": [{"num_rows": 7, "K": 1}, {"num_rows": 60, "num_columns": 6, "K": 4}],
    "multinomial_mixture": [{"num_rows": 7, "K": 1}, {"num_rows": 60, "num_columns": 6, "K": 4}],
    "sparse_mixture": [{"num_rows": 7, "K": 2}, {"num_rows": 60, "num_columns": 3, "K": 4}],
    "dirichlet_process_mixture": [{"num_rows": 7, "K": 2}, {"num_rows": 60, "num_columns": 3, "K": 4}],
    "regression_mixture": [{"num_rows": 7, "K": 1}, {"num_rows": 60, "num_covariates": 3, "K": 4}],
    "gaussian_hmm": [{"num_steps": 1, "K": 1}, {"num_steps": 20, "K": 3, "num_sequences": 4}],
    "gaussian_hmm_diagonal": [{"num_steps": 1, "K": 2}, {"num_steps": 20, "K": 3, "num_sequences": 4}],
    "gaussian_hmm_full": [{"num_steps": 5, "K": 1}, {"num_steps": 20, "K": 3, "num_sequences": 4}],
    "poisson_hmm": [{"num_steps": 1, "K": 2}, {"num_steps": 20, "K": 3, "num_sequences": 4}],
    "categorical_hmm": [{"num_steps": 1, "K": 2, "C": 1}, {"num_steps": 20, "K": 3, "C": 5, "num_sequences": 4}],
    "bernoulli_hmm": [{"num_steps": 1, "K": 2}, {"num_steps": 20, "K": 3, "num_sequences": 4, "num_features": 9}],
    "autoregressive_hmm": [{"num_steps": 1, "K": 2}, {"num_steps": 20, "K": 3, "order": 2}],
    "sticky_hmm": [{"num_steps": 2, "K": 1}, {"num_steps": 20, "K": 3, "num_sequences": 4}],
    "left_to_right_hmm": [{"num_steps": 1, "K": 2}, {"num_steps": 20, "K": 4, "num_sequences": 3}],
    "transition_covariate_hmm": [{"num_steps": 1, "K": 2}, {"num_steps": 20, "K": 3, "num_covariates": 2}],
    "regression_hmm": [{"num_steps": 1, "K": 1}, {"num_steps": 20, "K": 3, "num_covariates": 2}],
    "factorial_hmm": [{"num_steps": 1, "M": 1}, {"num_steps": 20, "K": 3, "M": 3}],
    "local_level": [{"num_steps": 1}, {"num_steps": 50}],
    "local_linear_trend": [{"num_steps": 1}, {"num_steps": 50}],
    "stochastic_volatility": [{"num_steps": 1}, {"num_steps": 50}],
    "vae": [{"num_rows": 1, "shape": (5,)}, {"num_rows": 20, "shape": (6, 5)}],
    "conditional_vae": [{"num_rows": 1, "shape": (5,), "num_classes": 1}, {"num_rows": 20, "shape": (6, 5)}],
    "semi_supervised_vae": [{"num_rows": 1, "shape": (5,), "num_classes": 2}, {"num_rows": 20, "shape": (6, 5)}],
    "two_layer_vae": [{"num_rows": 1, "shape": (5,)}, {"num_rows": 20, "shape": (6, 5)}],
    "probabilistic_pca": [{"num_rows": 3, "num_columns": 2, "num_latents": 1}, {"num_rows": 60}],
    "factor_analysis": [{"num_rows": 3, "num_columns": 2, "num_latents": 1}, {"num_rows": 60}],
    "bayesian_factor_analysis": [{"num_rows": 3, "num_columns": 1, "num_latents": 1}, {"num_rows": 60}],
    "deep_markov": [{"num_steps": 2, "num_sequences": None}, {"num_steps": 9, "num_sequences": 5}],
}
# Discrete sites that objectives sum out.
SUMMED_OUT = ("assignment", "label")
every_model = pytest.mark.parametrize("model", [pytest.param(m, id=m.name) for m in MODELS.values()])


pytestmark = pytest.mark.usefixtures("direct_pyro")


def sample_sites(trace):
    return {n: s for n, s in trace.nodes.items() if s["type"] == "sample" and not site_is_subsample(s)}


def latent_names(trace):
    return {n for n, s in sample_sites(trace).items() if not s["is_observed"]}


def in_default_dtype(data):
    """What `inference.fit` does to data."""
    dtype = torch.get_default_dtype()
    floating = {n: v for n, v in data.items() if isinstance(v, torch.Tensor) and v.is_floating_point()}
    return data | {n: v.to(dtype) for n, v in floating.items()}


def well_typed(data):
    """Sizes are Python's integers, lengths of sequences and numbers of columns torch's, all else is float64."""
    integers = [data[n] for n in ("lengths", "pivots") if n in data]
    rest = [v for n, v in data.items() if n not in ("lengths", "pivots")]
    return all(v.dtype == torch.int64 for v in integers) and all(
        isinstance(v, int) or v.dtype == torch.float64 for v in rest
    )


def data_sets(model):
    return [model.data(), *(model.simulate(3, **sizes).data for sizes in SIZES[model.name])]


def test_the_table_covers_the_registry():
    assert set(SIZES) == set(MODELS)


def test_the_package_exports_what_it_says_and_no_more():
    assert set(ppl_models.__all__) == {"MODELS", "Model", "Exact", "Simulation"}


@every_model
def test_names_arguments_and_default_data(model):
    assert model is MODELS[model.name]
    assert model.model.__name__ == model.name
    parameters = inspect.signature(model.model).parameters.values()
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters)
    assert model.summary == model.summary.strip()
    assert "\n" not in model.summary
    assert well_typed(model.data())
    if model.guide:
        assert inspect.signature(model.guide).parameters == inspect.signature(model.model).parameters


@every_model
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_every_site_has_a_finite_density_and_the_right_dtype(model, dtype):
    torch.set_default_dtype(dtype)
    for data in data_sets(model):
        pyro.clear_param_store()  # a network fits one size of data
        with own_stream(5):  # restores the dtype afterwards, so set it inside
            torch.set_default_dtype(dtype)
            trace = poutine.trace(model.model).get_trace(**in_default_dtype(data))
        trace.compute_log_prob()
        for name, site in sample_sites(trace).items():
            assert torch.isfinite(site["log_prob"]).all(), name
            assert site["value"].dtype == (torch.int64 if name in SUMMED_OUT else dtype), name


@every_model
def test_an_observed_site_bears_the_name_of_its_argument(model):
    data = model.data()
    trace = poutine.trace(model.model).get_trace(**data)
    observed = {n: s for n, s in sample_sites(trace).items() if s["is_observed"]}
    observed = {n: s for n, s in observed.items() if not s["infer"].get("_deterministic")}
    assert observed
    for name, site in observed.items():
        assert site["value"] is data[name]


@every_model
def test_particles_can_be_vectorised(model):
    """An outer plate changes nothing: each particle has the log density that it has alone."""
    data, num_particles = model.simulate(3, **SIZES[model.name][1]).data, 3

    def vectorised():
        with pyro.plate("particles", num_particles, dim=-2):
            model.model(**data)

    with own_stream(8):
        trace = poutine.trace(vectorised).get_trace()
    trace.compute_log_prob()
    sites = sample_sites(trace)
    together = sum(site["log_prob"].expand(num_particles, -1).sum(-1) for site in sites.values())
    for i in range(num_particles):
        values = {}
        for name in latent_names(trace):
            in_plate = len(sites[name]["cond_indep_stack"]) > 1
            values[name] = sites[name]["value"][i] if in_plate else sites[name]["value"][i].squeeze(0)
        alone = poutine.trace(poutine.condition(model.model, data=values)).get_trace(**data)
        torch.testing.assert_close(together[i], alone.log_prob_sum(), rtol=1e-10, atol=1e-8)


# Simulation ------------------------------------------------------------------------------------------------------


@every_model
@pytest.mark.parametrize("which", [0, 1])
def test_simulated_data_fit_the_model_at_other_sizes(model, which):
    simulation = model.simulate(3, **SIZES[model.name][which])
    assert set(model.data()) <= set(simulation.data)
    trace = poutine.trace(model.model).get_trace(**simulation.data)
    latent = {n: s for n, s in sample_sites(trace).items() if n not in simulation.data}
    assert set(simulation.truth) == set(latent)
    for name, site in latent.items():
        assert simulation.truth[name].shape == site["value"].shape, name
        assert simulation.truth[name].dtype == site["value"].dtype, name
    assert well_typed(simulation.data)


@every_model
def test_simulation_depends_on_the_seed_alone(model):
    def flat(seed):
        truth, data = model.simulate(seed, **SIZES[model.name][0])
        tensors = [v for v in [*truth.values(), *data.values()] if isinstance(v, torch.Tensor)]
        return torch.cat([v.double().reshape(-1) for v in tensors])

    first = flat(1)
    torch.manual_seed(99)
    torch.set_default_dtype(torch.float32)
    assert torch.equal(first, flat(1))
    assert not torch.equal(first, flat(2))


def streams_after(function):
    """States of the three random streams and the default dtype after a call, all set the same way before it."""
    pyro.set_rng_seed(11)
    torch.set_default_dtype(torch.float32)
    function()
    return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random(), torch.get_default_dtype()


@every_model
def test_simulation_leaves_the_callers_streams_and_dtype_alone(model):
    assert streams_after(lambda: model.simulate(1)) == streams_after(lambda: None)


@pytest.mark.parametrize("draw", [lambda: torch.rand(1), lambda: np.random.rand(), random.random])
def test_control_a_disturbed_stream_is_noticed(draw):
    assert streams_after(draw) != streams_after(lambda: None)


def test_a_failing_simulation_restores_the_stream_and_dtype():
    def fail():
        with pytest.raises(ValueError, match="truth: 'nu' is not a latent site of the model; it has mu."):
            MODELS["normal_mean"].simulate(1, truth={"nu": 0.0})

    assert streams_after(fail) == streams_after(lambda: None)


@every_model
def test_given_truth_is_used(model):
    sizes = SIZES[model.name][1]
    drawn = model.simulate(4, **sizes)
    trace = poutine.trace(model.model).get_trace(**drawn.data)
    given = {name: drawn.truth[name] for name in sorted(latent_names(trace))}
    again = model.simulate(5, **sizes, truth={n: v.tolist() for n, v in given.items()})
    assert set(again.truth) == set(drawn.truth)
    for name, value in drawn.truth.items():  # deterministic sites follow from the given ones
        assert torch.equal(again.truth[name], value), name
    assert any(not torch.equal(again.data[n], v) for n, v in drawn.data.items() if isinstance(v, torch.Tensor))


def test_truth_of_the_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"truth\['coef'\]: expected shape \(3,\) at these sizes, got \(2,\)"):
        MODELS["linear_regression"].simulate(0, truth={"coef": [1.0, 2.0]})
    with pytest.raises(ValueError, match="'theta' is not a latent site"):
        MODELS["eight_schools"].simulate(0, truth={"theta": torch.zeros(8)})


def test_settings_reach_the_model_and_the_data():
    simulation = MODELS["normal_mean"].simulate(0, prior_mean=1e6, noise_sd=1e-3)
    assert simulation.data["prior_mean"] == 1e6
    assert abs(simulation.truth["mu"] - 1e6) < 5  # ten prior sds
    assert (simulation.data["y"] - simulation.truth["mu"]).abs().max() < 0.01


# Guides, coordinates, exact answers: their form ------------------------------------------------------------------


def elbo_gradients(model, guide, data):
    elbo = TraceEnum_ELBO() if "mixture" in model.name or "semi" in model.name else Trace_ELBO()
    with own_stream(6):
        with poutine.trace(param_only=True) as record:
            loss = elbo.differentiable_loss(model.model, guide, **data)
        params = {n: s["value"].unconstrained() for n, s in record.trace.nodes.items()}
        return loss, dict(zip(params, torch.autograd.grad(loss, list(params.values())), strict=True))


with_guide = pytest.mark.parametrize("model", [pytest.param(m, id=m.name) for m in MODELS.values() if m.guide])


@with_guide
@pytest.mark.parametrize("which", [None, 0, 1])
def test_a_guide_covers_the_continuous_latents_and_all_its_parameters_learn(model, which):
    data = model.data() if which is None else model.simulate(3, **SIZES[model.name][which]).data
    guide_trace = poutine.trace(model.guide).get_trace(**data)
    model_trace = poutine.trace(model.model).get_trace(**data)
    assert latent_names(guide_trace) == latent_names(model_trace) - {"assignment"}
    loss, gradients = elbo_gradients(model, model.guide, data)
    assert torch.isfinite(loss)
    for name, gradient in gradients.items():
        if name.endswith("scale_tril"):  # nothing above the diagonal
            gradient = gradient[..., *torch.tril_indices(*gradient.shape[-2:])]
        if name == "encoder.weight_ih_l0":  # a switch that is never on moves nothing
            gradient = gradient[:, data["x"].flatten(0, -2).any(0)]
        if name in ("encoder.head.0.weight", "decoder.head.0.weight") and "labels" in data:
            assert (gradient != 0).any(), name  # weights of a class that no picture can have do not learn
        elif not (name == "weights_concentration" and data["K"] == 1):  # a Dirichlet over one component is a point
            assert (gradient != 0).all(), name


def test_control_a_parameter_without_influence_is_noticed():
    def idle_guide(**data):
        pyro.param("idle", torch.tensor(1.0))
        MODELS["normal_mean"].guide(**data)

    loss = Trace_ELBO().differentiable_loss(MODELS["normal_mean"].model, idle_guide, **MODELS["normal_mean"].data())
    (gradient,) = torch.autograd.grad(loss, [pyro.param("idle").unconstrained()], allow_unused=True)
    assert gradient is None


@pytest.mark.parametrize("model", [pytest.param(m, id=m.name) for m in MODELS.values() if m.coords])
def test_coords_name_the_plates_of_the_bundled_data_and_of_no_other(model):
    data = model.data()
    trace = poutine.trace(model.model).get_trace(**data)
    sizes = {f.name: f.size for s in sample_sites(trace).values() for f in s["cond_indep_stack"]}
    labels = model.coords(data)
    assert labels
    for plate, names in labels.items():
        assert len(set(names)) == len(names) == sizes[plate]
        assert all(type(name) is str for name in names)
    single = {n: v.float() if isinstance(v, torch.Tensor) else v for n, v in data.items()}
    assert model.coords(single) == labels
    (key,) = {"x", "sigma", "trials"} & set(data)
    assert model.coords(data | {key: data[key].flip(0)}) == {}
    assert model.coords(data | {key: data[key][:2]}) == {}


@pytest.mark.parametrize("model", [pytest.param(m, id=m.name) for m in MODELS.values() if m.exact])
def test_exact_answers_have_the_sites_and_shapes_of_the_model(model):
    for data in data_sets(model):
        exact = model.exact(data)
        sites = sample_sites(poutine.trace(model.model).get_trace(**data))
        shapes = {n: tuple(s["value"].shape) for n, s in sites.items() if not s["is_observed"]}
        assert {n: v.shape for n, v in exact.mean.items()} == shapes
        assert {n: v.shape for n, v in exact.sd.items()} == shapes
        assert all(np.all(v > 0) for v in exact.sd.values())
        assert isinstance(exact.log_evidence, float)


def test_a_model_is_frozen():
    with pytest.raises(AttributeError):
        MODELS["normal_mean"].name = "other"
    assert isinstance(MODELS["normal_mean"], Model)
