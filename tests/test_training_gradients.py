"""The loss and gradient of a mini-batch: unbiased for those of all rows, and right for weights by row."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from inference.isolation import isolated
from inference.objectives import ImportanceWeighted, vectorized
from tests.training_models import DynamicImages, LinearVae, averaged, gradients, images, network

VAE = LinearVae()
DRAWS = 3


def with_noise(num=23):
    noise = np.random.default_rng(2).normal(size=(num, DRAWS, VAE.latents))
    return {**VAE.data(num), "noise": noise}


def assert_same_gradients(one, other):
    assert one[0] == pytest.approx(other[0], rel=1e-10)
    assert set(one[1]) == set(other[1]) == {"w", "s", "a", "scale"}
    for name, expected in other[1].items():
        torch.testing.assert_close(one[1][name], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("eager", [True, False])
@pytest.mark.parametrize(
    ("elbo", "draws"),
    [("trace", 1), ("trace_mean_field", 1), ("stl", 1), ("iw", DRAWS), ("iwae", DRAWS), ("tail_adaptive", DRAWS)],
)
def test_the_batches_of_an_epoch_average_to_all_rows(elbo, draws, eager):
    options = {"elbo": elbo, "num_particles": draws, "eager": eager}
    # 23 rows in batches of 5: the last has 3
    batches = gradients(VAE.model, VAE.guide, with_noise(), size=5, **options)
    assert [rows for rows, _, _ in batches] == [5, 5, 5, 5, 3]
    whole = averaged(gradients(VAE.model, VAE.guide, with_noise(), size=23, **options))
    assert_same_gradients(averaged(batches), whole)
    with pytest.raises(AssertionError):  # a batch alone is another number
        assert_same_gradients(averaged(batches[:1]), whole)


def test_batches_of_an_epoch_hold_every_row_once_in_an_order_of_the_seed():
    data = {"x": np.arange(23.0)}

    def model(*, x):
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        pyro.sample("z", dist.Normal(0.0, 1.0))

    def guide(*, x):
        pyro.sample("z", dist.Delta(torch.tensor(0.0)))

    # the gradient of loc is minus N times the mean of the rows
    means = [g["loc"].item() / -23 for _, _, g in gradients(model, guide, data, size=5)]
    assert np.average(means, weights=[5, 5, 5, 5, 3]) == pytest.approx(11.0)
    again = [g["loc"].item() / -23 for _, _, g in gradients(model, guide, data, size=5)]
    other = [g["loc"].item() / -23 for _, _, g in gradients(model, guide, data, size=5, seed=4)]
    assert means == again != other
    assert sorted(means) != means


def test_global_sites_count_once_in_every_batch():
    def model(*, x):
        loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    def guide(*, x):
        pyro.sample("loc", dist.Delta(pyro.param("at", torch.tensor(0.3))))

    x = np.random.default_rng(0).normal(size=10)
    value, gradient = averaged(gradients(model, guide, {"x": x}, size=4))
    expected = torch.distributions.Normal(0.0, 2.0).log_prob(torch.tensor(0.3)).item()
    expected += torch.distributions.Normal(0.3, 1.0).log_prob(torch.as_tensor(x)).sum().item()
    assert value == pytest.approx(-expected)
    assert gradient["at"].item() == pytest.approx(0.3 / 4 - (x - 0.3).sum())


@pytest.mark.parametrize("eager", [True, False])
def test_summed_out_sites_of_batches_average_to_all_rows(eager):
    def mixture(*, x):
        with pyro.plate("component", 2):
            loc = pyro.sample("loc", dist.Normal(0.0, 5.0))
        with pyro.plate("data", len(x)):
            kind = pyro.sample("kind", dist.Categorical(torch.tensor([0.3, 0.7])))
            pyro.sample("x", dist.Normal(loc[kind], 1.0), obs=x)

    def guide(*, x):
        with pyro.plate("component", 2):
            pyro.sample("loc", dist.Delta(pyro.param("at", torch.tensor([-1.0, 2.0]))))

    x = np.random.default_rng(0).normal(size=11) * 2
    value, gradient = averaged(gradients(mixture, guide, {"x": x}, size=4, elbo="trace_enum", eager=eager))
    at = torch.tensor([-1.0, 2.0], dtype=torch.float64, requires_grad=True)
    each = torch.distributions.Normal(at, 1.0).log_prob(torch.as_tensor(x)[:, None])
    expected = -(each + torch.tensor([0.3, 0.7], dtype=torch.float64).log()).logsumexp(1).sum()
    expected = expected - torch.distributions.Normal(0.0, 5.0).log_prob(at).sum()
    expected.backward()
    assert value == pytest.approx(expected.item())
    torch.testing.assert_close(gradient["at"], at.grad)


def bounds_by_row(data, draws):
    """ELBO and importance-weighted bound of every row in numpy, at the start of the parameters and the fixed noise."""
    x, noise = data["x"], data["noise"][:, :draws]
    w = np.random.default_rng(0).normal(size=(VAE.columns, VAE.latents))
    scale = np.array([0.8, 0.5])
    z = (x @ np.full((VAE.columns, VAE.latents), 0.1))[:, None] + scale * noise

    def normal(value, loc, sd):
        return -0.5 * ((value - loc) / sd) ** 2 - np.log(sd) - 0.5 * np.log(2 * np.pi)

    log_weights = normal(z, 0, 1).sum(-1) + normal(x[:, None], z @ w.T, 0.7).sum(-1)
    log_weights -= normal(noise, 0, 1).sum(-1) - np.log(scale).sum()
    iw = np.logaddexp.reduce(log_weights, axis=1) - np.log(draws)
    joint = np.logaddexp.reduce(log_weights.sum(0)) - np.log(draws)
    return log_weights.mean(1), iw, joint


def test_importance_weights_are_those_of_each_row():
    data = with_noise()
    elbo, iw, joint = bounds_by_row(data, DRAWS)
    found, _ = averaged(gradients(VAE.model, VAE.guide, data, size=5, elbo="iw", num_particles=DRAWS))
    assert found == pytest.approx(-iw.sum())
    # one weight for all rows would be a bound far below, near the ELBO of the best draw
    assert iw.sum() > max(joint, elbo.sum()) + 5


def bound_and_gradients(data, draws):
    """The importance-weighted bound of all rows in plain torch, at the fixed noise, and its gradients by autograd."""
    x, noise = (torch.as_tensor(data[name]) for name in ("x", "noise"))
    with isolated(0, dtype=torch.float64):
        w, s = (p.detach().requires_grad_() for p in VAE.parameters())
    a = torch.full((VAE.columns, VAE.latents), 0.1, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor([0.8, 0.5], dtype=torch.float64, requires_grad=True)
    z = (x @ a)[:, None] + scale * noise[:, :draws]
    normal = torch.distributions.Normal
    log_weights = normal(0.0, 1.0).log_prob(z).sum(-1) + normal(z @ w.T, s).log_prob(x[:, None]).sum(-1)
    log_weights = log_weights - normal((x @ a)[:, None], scale).log_prob(z).sum(-1)
    loss = -(log_weights.logsumexp(1) - np.log(draws)).sum()
    loss.backward()
    # the store has logs of positive parameters
    return loss.item(), {"w": w.grad, "s": s.grad * s.detach(), "a": a.grad, "scale": scale.grad * scale.detach()}


@pytest.mark.parametrize("eager", [True, False])
def test_the_plain_gradient_is_the_derivative_of_the_bound_draw_by_draw(eager):
    data = with_noise()
    options = {"size": 5, "num_particles": DRAWS, "eager": eager}
    found = averaged(gradients(VAE.model, VAE.guide, data, elbo="iwae", **options))
    expected = bound_and_gradients(data, DRAWS)
    assert_same_gradients(found, expected)
    with pytest.raises(AssertionError):  # the other estimator of the same gradient is equal on average only
        assert_same_gradients(averaged(gradients(VAE.model, VAE.guide, data, elbo="iw", **options)), expected)


@pytest.mark.parametrize("vectorize", [True, False])
def test_observations_that_the_model_draws_are_the_same_in_every_run_of_a_step(vectorize):
    vae = network(DynamicImages)
    with isolated(1, dtype=torch.float32):
        x = torch.rand(20, 64)
        objective = ImportanceWeighted(num_particles=3, max_plate_nesting=1, vectorize_particles=vectorize)
        drawn = objective._particles(vae.model, vae.guide, (), {"x": x})
        assert drawn.log_weight.shape == (3, 20)
        torch.testing.assert_close(drawn.log_joint, drawn.log_weight + drawn.score)
        again = objective._particles(vae.model, vae.guide, (), {"x": x})
        with pytest.raises(AssertionError):
            torch.testing.assert_close(again.log_joint, drawn.log_joint)
        assert vectorized(ImportanceWeighted(num_particles=3, max_plate_nesting=1), vae.model, vae.guide, {"x": x})


@pytest.mark.parametrize("draws", [2, 7])
def test_importance_weighted_bound_is_the_evidence_where_the_guide_is_exact(draws):
    data = VAE.data()
    w = np.random.default_rng(0).normal(size=(VAE.columns, VAE.latents))
    exact = VAE.log_evidence(data["x"], w, 0.7).sum().item()
    found, _ = averaged(
        gradients(VAE.model, VAE.exact_guide, data, size=5, elbo="iw", num_particles=draws, eager=False)
    )
    assert found == pytest.approx(-exact, rel=1e-8)
    rough, _ = averaged(gradients(VAE.model, VAE.guide, data, size=5, elbo="iw", num_particles=draws))
    assert rough > -exact + 1


def evidence_gradient(x, w, s):
    w = torch.as_tensor(w).requires_grad_()
    covariance = w @ w.T + s**2 * torch.eye(len(w), dtype=torch.float64)
    mvn = torch.distributions.MultivariateNormal(torch.zeros(len(w), dtype=torch.float64), covariance)
    mvn.log_prob(torch.as_tensor(x)).sum().backward()
    return w.grad


def test_many_importance_weights_give_the_gradient_of_the_evidence_and_few_do_not():
    data = VAE.data(12)
    w = np.random.default_rng(0).normal(size=(VAE.columns, VAE.latents))
    exact = evidence_gradient(data["x"], w, 0.7)

    def error(draws, repeats):
        found = [
            averaged(gradients(VAE.model, VAE.wide_guide, data, size=6, elbo="iw", num_particles=draws, seed=seed))
            for seed in range(repeats)
        ]
        each = torch.stack([-gradient["w"] for _, gradient in found])
        return (each.mean(0) - exact).abs() / (each.std(0) / repeats**0.5)

    assert error(2000, 20).max() < 4.5  # bias falls as 1 / draws, here far below the Monte Carlo error
    assert error(2, 100).max() > 6


def test_the_weight_of_the_kl_is_that_of_the_beta_elbo():
    def parts(weight, eager):
        return averaged(
            gradients(
                VAE.model, VAE.guide, with_noise(), size=5, elbo="trace_mean_field", kl_weight=weight, eager=eager
            )
        )

    none, half, one = (parts(weight, True) for weight in (0.0, 0.5, 1.0))
    assert half[0] == pytest.approx((none[0] + one[0]) / 2)
    plain = averaged(gradients(VAE.model, VAE.guide, with_noise(), size=5, elbo="trace_mean_field"))
    assert_same_gradients(one, plain)
    assert one[0] > none[0] + 10  # the KL itself
    assert_same_gradients(parts(0.25, False), parts(0.25, True))


def test_networks_are_the_same_recorded_and_eager():
    data = images(50)
    options = {"size": 20, "elbo": "trace_mean_field", "dtype": torch.float32}
    one, other = (
        [*gradients(v.model, v.guide, data, eager=e, **options)] for v, e in ((network(), True), (network(), False))
    )
    for (_, _, eager), (_, _, recorded) in zip(one, other, strict=True):
        assert set(eager) == set(recorded)
        assert len(eager) == 8
        # the draws differ, as both take them in ways of their own, so only the signs of the largest gradients agree
        agree = [torch.nn.functional.cosine_similarity(eager[n].flatten(), recorded[n].flatten(), 0) for n in eager]
        assert min(agree) > 0.5
