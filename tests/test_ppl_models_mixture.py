"""The ordered prior, the summed-out assignments and the relabelling of the Gaussian mixtures."""

import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, TraceEnum_ELBO
from pyro.infer.mcmc.util import initialize_model
from scipy import integrate, stats
from torch.distributions import biject_to

from ppl_models import MODELS
from ppl_models.order_statistics import OrderStatistics
from ppl_models.simulation import own_stream

pytestmark = pytest.mark.usefixtures("direct_pyro")

# Order statistics ------------------------------------------------------------------------------------------------

BASES = {
    "normal": (dist.Normal(1.0, 2.0), stats.norm(1, 2), (-15.0, 17.0)),
    "exponential": (dist.Exponential(0.5), stats.expon(scale=2), (0.0, 60.0)),
}


@pytest.mark.parametrize("name", BASES)
def test_the_density_of_two_order_statistics_integrates_to_one(name):
    base, _, (lower, upper) = BASES[name]
    pair = OrderStatistics(base, 2)

    def density(second, first):
        return math.exp(pair.log_prob(torch.tensor([first, second])).item())

    mass, _ = integrate.dblquad(density, lower, upper, lambda first: first, upper, epsabs=1e-6)
    assert abs(mass - 1) < 1e-5
    unordered, _ = integrate.dblquad(  # control: over all pairs, ordered or not, it would be two
        lambda second, first: math.exp(base.log_prob(torch.tensor([first, second])).sum().item()),
        *(lower, upper, lambda first: first, upper),
        epsabs=1e-6,
    )
    assert abs(unordered - 0.5) < 1e-5


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("size", [1, 2, 5])
def test_each_order_statistic_has_its_known_distribution(name, size):
    """F(X_(k)) is Beta(k, size - k + 1)."""
    base, reference, _ = BASES[name]
    with own_stream(4):
        draws = OrderStatistics(base, size).sample((4000,)).numpy()
    assert (np.diff(draws, axis=-1) > 0).all()
    for k in range(1, size + 1):
        law = stats.beta(k, size - k + 1)
        assert stats.kstest(reference.cdf(draws[:, k - 1]), law.cdf).pvalue > 1e-3
        if size > 1:  # control: the law of the neighbour
            other = stats.beta(k % size + 1, size - k % size)
            assert stats.kstest(reference.cdf(draws[:, k - 1]), other.cdf).pvalue < 1e-6


def test_order_statistics_have_batches_expand_and_gradients():
    loc = torch.tensor([[0.0], [10.0], [20.0]], requires_grad=True)
    ordered = OrderStatistics(dist.Normal(loc, torch.ones(4)), 3)
    assert ordered.has_rsample
    assert ordered.batch_shape == (3, 4)
    assert ordered.event_shape == (3,)
    value = ordered.rsample((6,))
    assert value.shape == (6, 3, 4, 3)
    assert ordered.support.check(value).all()
    assert ((value - loc[..., None]).abs() < 8).all()  # batch entries are not mixed up by the sorting
    log_prob = ordered.log_prob(value)
    assert log_prob.shape == (6, 3, 4)
    by_hand = dist.Normal(loc[..., None], 1.0).log_prob(value).sum(-1) + math.log(6)
    torch.testing.assert_close(log_prob, by_hand)
    (gradient,) = torch.autograd.grad((log_prob + value.sum(-1)).sum(), loc)
    assert torch.isfinite(gradient).all()
    assert (gradient != 0).all()

    wide = OrderStatistics(dist.Normal(0.0, 1.0), 3).expand([5, 2])
    assert wide.shape() == (5, 2, 3)
    with own_stream(0):
        value = wide.sample()
    assert value.shape == (5, 2, 3)
    assert len(value.unique()) == value.numel()  # expanded entries are independent, not copies
    torch.testing.assert_close(wide.log_prob(value), OrderStatistics(dist.Normal(0.0, 1.0), 3).log_prob(value))


def test_a_prior_density_through_the_ordering_transform_has_finite_gradients():
    """What NUTS sees: the density pulled back to the unconstrained space."""
    ordered = OrderStatistics(dist.Normal(4.0, 2.0), 4)
    transform = biject_to(ordered.support)
    for start in (torch.zeros(4), torch.full((4,), 2.0), torch.tensor([-2.0, -6.0, 1.5, -6.0])):
        free = start.clone().requires_grad_()
        value = transform(free)
        density = ordered.log_prob(value) + transform.log_abs_det_jacobian(free, value)
        (gradient,) = torch.autograd.grad(density, free)
        assert torch.isfinite(gradient).all()


def test_order_statistics_refuse_what_they_cannot_be():
    with pytest.raises(ValueError, match="expected a univariate base_dist and size >= 1"):
        OrderStatistics(dist.Normal(torch.zeros(2), 1.0).to_event(1), 2)
    with pytest.raises(ValueError, match="size 0"):
        OrderStatistics(dist.Normal(0.0, 1.0), 0)
    with pytest.raises(ValueError, match="OrderedVector"):
        OrderStatistics(dist.Normal(0.0, 1.0), 2, validate_args=True).log_prob(torch.tensor([1.0, 0.0]))


# The mixtures ----------------------------------------------------------------------------------------------------


def mixture_log_joint(data, values, *, ordered):
    """The density of the continuous latents, the assignments summed out by hand, with scipy."""
    K, x = data["K"], data["x"].numpy()[:, None]
    mean, sd = (0.0, 1.0) if "data_mean" in data else (x.mean(), x.std())
    weights, loc, scale = (values[n].numpy() for n in ("weights", "loc", "scale"))
    prior = stats.dirichlet(np.full(K, 2.0)).logpdf(weights)
    prior += stats.norm(mean, 2 * sd).logpdf(loc).sum() + (math.lgamma(K + 1) if ordered else 0.0)
    prior += stats.lognorm(s=0.75, scale=sd / K).logpdf(scale).sum()
    return prior + np.logaddexp.reduce(np.log(weights) + stats.norm(loc, scale).logpdf(x), axis=1).sum()


@pytest.mark.parametrize("name", ["gaussian_mixture", "gaussian_mixture_exchangeable"])
@pytest.mark.parametrize("K", [2, 3])
def test_enumeration_sums_the_assignments_out(name, K):
    model = MODELS[name]
    data = model.simulate(2, num_rows=12, K=K).data
    with own_stream(9):
        free, potential, transforms, _ = initialize_model(model.model, model_kwargs=data)
    assert set(free) == {"weights", "loc", "scale"}
    values = {n: transforms[n].inv(v) for n, v in free.items()}
    jacobian = sum(transforms[n].inv.log_abs_det_jacobian(free[n], values[n]).sum() for n in free)
    ordered = name == "gaussian_mixture"
    by_hand = mixture_log_joint(data, values, ordered=ordered) + jacobian.item()
    np.testing.assert_allclose(-potential(free).item(), by_hand, rtol=1e-9)
    control = mixture_log_joint(data, values, ordered=not ordered) + jacobian.item()
    assert abs(-potential(free).item() - control) > 0.5


def test_the_ordered_guide_reaches_the_posterior_of_the_irises():
    """Against importance sampling from the fitted guide itself: after training its draws need little re-weighting."""
    model = MODELS["gaussian_mixture"]
    data = model.data()

    def mean_and_efficiency(num_draws):
        log_weight, locs = [], []
        for _ in range(num_draws):
            guide = poutine.trace(model.guide).get_trace(**data)
            values = {n: guide.nodes[n]["value"].detach() for n in ("weights", "loc", "scale")}
            log_weight.append(mixture_log_joint(data, values, ordered=True) - guide.log_prob_sum().item())
            locs.append(values["loc"].numpy())
        weight = np.exp(np.array(log_weight) - max(log_weight))
        locs = np.array(locs)
        return locs.mean(0), weight @ locs / weight.sum(), weight.sum() ** 2 / (weight**2).sum() / num_draws

    optimiser = pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.05 ** (1 / 600)})
    with pyro.get_param_store().scope(), own_stream(1):
        *_, before = mean_and_efficiency(200)
        svi = SVI(model.model, model.guide, optimiser, TraceEnum_ELBO(max_plate_nesting=1))
        for _ in range(600):
            svi.step(**data)
        raw, weighted, after = mean_and_efficiency(400)
    assert before < 0.05  # control: untrained, hardly a draw counts
    assert after > 0.3
    # Posterior sds are about .03 and .08; a tenth of that is beyond the Monte Carlo error of 400 draws, a half is not.
    np.testing.assert_allclose(raw, weighted, atol=0.03)
    np.testing.assert_allclose(weighted, [1.46, 4.9], atol=0.15)  # setosa; versicolor and virginica together


# Relabelling -----------------------------------------------------------------------------------------------------


def made_up_draws(K=3, num_rows=8):
    rng = np.random.default_rng(0)
    shape = (2, 5, K)
    return {
        "weights": rng.dirichlet(np.ones(K), shape[:2]),
        "loc": rng.normal(size=shape),
        "scale": rng.exponential(size=shape),
        "assignment": rng.integers(K, size=(*shape[:2], num_rows)),
    }


def permuted(draws, permutation):
    """Rename component j to ``permutation[j]``."""
    old = np.argsort(permutation)
    renamed = {n: draws[n][..., old] for n in ("weights", "loc", "scale")}
    return renamed | {"assignment": np.asarray(permutation)[draws["assignment"]]}


def test_identify_does_not_depend_on_the_labels():
    identify = MODELS["gaussian_mixture_exchangeable"].identify
    draws = made_up_draws()
    identified = identify(draws)
    assert set(identified) == set(draws)
    assert (np.diff(identified["loc"], axis=-1) > 0).all()
    for permutation in itertools.permutations(range(3)):
        again = identify(permuted(draws, permutation))
        for name in draws:
            np.testing.assert_array_equal(again[name], identified[name])
    # Control: the draws themselves do depend on the labels, and on which label a row had.
    swapped = permuted(draws, (1, 0, 2))
    assert all((swapped[name] != draws[name]).any() for name in draws)
    other = {**draws, "loc": draws["loc"] + [0.0, 0.1, 0.2]}
    assert (identify(other)["loc"] != identified["loc"]).any()


def test_identify_keeps_what_belongs_together():
    """A row keeps the location, scale and weight of its component, whatever the component is called."""
    draws = made_up_draws()
    identified = MODELS["gaussian_mixture_exchangeable"].identify(draws)
    for name in ("weights", "loc", "scale"):
        before = np.take_along_axis(draws[name], draws["assignment"], axis=-1)
        after = np.take_along_axis(identified[name], identified["assignment"], axis=-1)
        np.testing.assert_array_equal(after, before)
    parameters = {n: v for n, v in draws.items() if n != "assignment"}
    assert set(MODELS["gaussian_mixture_exchangeable"].identify(parameters)) == set(parameters)


def test_the_exchangeable_posterior_does_not_depend_on_the_labels():
    model = MODELS["gaussian_mixture_exchangeable"]
    truth, data = model.simulate(2, num_rows=12, K=3)
    sites = {n: truth[n].numpy() for n in truth}

    def log_density(values):
        values = {n: torch.from_numpy(np.ascontiguousarray(v)) for n, v in values.items()}
        return poutine.trace(poutine.condition(model.model, data=values)).get_trace(**data).log_prob_sum().item()

    renamed = permuted(sites, (2, 0, 1))
    assert log_density(renamed) == pytest.approx(log_density(sites), abs=1e-9)
    half = renamed | {"assignment": sites["assignment"]}  # control: rows not renamed along
    assert abs(log_density(half) - log_density(sites)) > 1
