"""log p(x) by row against the exact evidence of the linear-Gaussian model, and the ways in which models are run."""

import linear_latent as ll
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

import inference.latent_rows
from inference import NUTS, SVI, InputError, fit, log_marginal

TRUTH = ll.linear(2, 5)
X = ll.rows_of(TRUTH, 60)
EXACT = TRUTH.log_p(X)
FACTOR = np.linalg.cholesky(TRUTH.covariance)


def agree(estimate, se, exact):
    """Require that errors are those that are claimed: no bias, and a spread of one."""
    z = (estimate - exact) / se
    assert abs(z.mean()) < 4 / np.sqrt(z.size)
    assert 0.7 < z.std() < 1.4


@pytest.fixture(scope="module")
def exact_fit():
    return ll.trained(TRUTH, X)


@pytest.fixture(scope="module")
def wide_fit():
    return ll.trained(TRUTH, X, factor=1.3 * FACTOR)


def test_exact_guide_gives_the_evidence_without_error(exact_fit):
    found = log_marginal(exact_fit, num_samples=100)
    np.testing.assert_allclose(found.log_p, EXACT, atol=1e-9)
    np.testing.assert_allclose(found.elbo, EXACT, atol=1e-9)
    assert found.se.max() < 1e-9
    assert not found.warning
    assert found.total == pytest.approx(EXACT.sum())


def test_estimates_have_the_errors_that_they_claim(wide_fit):
    found = log_marginal(wide_fit, num_samples=1000)
    agree(found.log_p, found.se, EXACT)
    agree(found.elbo, found.elbo_se, EXACT - TRUTH.kl(TRUTH.mean(X), 1.3 * FACTOR, X))
    assert abs(found.mean - EXACT.mean()) < 4 * found.mean_se
    assert found.sampling_se == pytest.approx(found.log_p.std(ddof=1) / np.sqrt(len(X)))
    assert list(found.to_frame().columns) == ["log_p", "se", "elbo", "elbo_se", "khat"]


def test_float32_and_new_rows():
    found = ll.trained(TRUTH, X, factor=1.3 * FACTOR, dtype="float32")
    new = ll.rows_of(TRUTH, 40, seed=9)
    scored = log_marginal(found, {"x": new}, num_samples=1000)
    agree(scored.log_p, scored.se, TRUTH.log_p(new))


def test_equal_seeds_give_equal_numbers_and_the_caller_keeps_his_state(wide_fit):
    pyro.get_param_store().clear()
    pyro.param("mine", torch.tensor(3.0))
    state = torch.get_rng_state()
    one, two, other = (log_marginal(wide_fit, num_samples=100, seed=seed) for seed in (4, 4, 5))
    assert torch.equal(torch.get_rng_state(), state)
    assert list(pyro.get_param_store().keys()) == ["mine"]
    pyro.get_param_store().clear()
    np.testing.assert_array_equal(one.log_p, two.log_p)
    assert (one.log_p != other.log_p).all()


def test_some_rows_and_small_chunks(exact_fit, monkeypatch):
    monkeypatch.setattr(inference.latent_rows, "CHUNK_NUMBERS", 37)
    monkeypatch.setattr(inference.latent_rows, "CHUNK_ROWS", 7)
    found = log_marginal(exact_fit, rows=[3, 50, 8], num_samples=100)
    np.testing.assert_allclose(found.log_p, EXACT[[3, 50, 8]], atol=1e-9)
    assert found.to_frame().index.tolist() == [3, 50, 8]
    np.testing.assert_allclose(
        log_marginal(exact_fit, rows=20, num_samples=100).log_p, EXACT[np.linspace(0, 59, 20).astype(int)]
    )


def test_narrow_guide_is_warned_of(wide_fit):
    narrow = log_marginal(ll.trained(TRUTH, X, factor=0.5 * FACTOR), num_samples=1000)
    assert narrow.poor.mean() > 0.5
    assert "k-hat is above" in narrow.warning
    assert "bracket" in str(narrow)
    assert not log_marginal(wide_fit, num_samples=1000).warning


def test_missing_entries_are_integrated_out():
    gaps = X.copy()
    gaps[::2, :2] = np.nan
    found = log_marginal(ll.trained(TRUTH, gaps, factor=2 * np.eye(2)), num_samples=4000)
    cov = TRUTH.weight @ TRUTH.weight.T + ll.NOISE**2 * np.eye(5)
    seen = multivariate_normal(TRUTH.offset[2:], cov[2:, 2:]).logpdf(X[::2, 2:])
    np.testing.assert_allclose(found.log_p[::2], seen, atol=0.5)
    assert abs((found.log_p[::2] - seen).mean()) < 4 * np.sqrt(np.sum(found.se[::2] ** 2)) / 30


# --- Ways to run ------------------------------------------------------------------------------------------------------


def one_batch_dim(x):
    """A decoder that takes (batch, latents) only, like a convolution."""
    weight, offset = pyro.param("weight"), pyro.param("offset")
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(weight.shape[1]), 1.0).to_event(1))
        mean = torch.addmm(offset, z, weight.T)
        pyro.sample("x", dist.Normal(mean, ll.NOISE).to_event(1), obs=x)


def first_draw_only(x):
    """A decoder that takes more batch dims, and then silently uses the first draw for all."""
    weight, offset = pyro.param("weight"), pyro.param("offset")
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(weight.shape[1]), 1.0).to_event(1))
        mean = (z if z.dim() == 2 else z[0]) @ weight.T + offset
        pyro.sample("x", dist.Normal(mean, ll.NOISE).to_event(1), obs=x)


def in_two_plates(x):
    weight, offset = pyro.param("weight"), pyro.param("offset")
    with pyro.plate("data", len(x), dim=-2):
        z = pyro.sample("z", dist.Normal(torch.zeros(weight.shape[1]), 1.0).to_event(1))
        with pyro.plate("column", x.shape[1], dim=-1):
            pyro.sample("x", dist.Normal((z @ weight.T).squeeze(-2) + offset, ll.NOISE), obs=x)


def guide_in_two_plates(x):
    with pyro.plate("data", len(x), dim=-2):
        loc = x @ pyro.param("encoder").T + pyro.param("shift")
        pyro.sample("z", dist.MultivariateNormal(loc[:, None], scale_tril=pyro.param("factor").tril()))


def weighted_kl(x):
    weight, offset = pyro.param("weight"), pyro.param("offset")
    with pyro.plate("data", len(x)):
        with poutine.scale(scale=0.1):
            z = pyro.sample("z", dist.Normal(torch.zeros(weight.shape[1]), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ weight.T + offset, ll.NOISE).to_event(1), obs=x)


@pytest.mark.parametrize(
    ("model", "guide", "said"),
    [
        (one_batch_dim, ll.guide, "rows are repeated"),
        (first_draw_only, ll.guide, "another density"),
        (in_two_plates, guide_in_two_plates, ""),
        (weighted_kl, ll.guide, ""),
    ],
)
def test_models_of_other_makes(model, guide, said):
    found = log_marginal(ll.trained(TRUTH, X, used_model=model, used_guide=guide), num_samples=100)
    np.testing.assert_allclose(found.log_p, EXACT, atol=1e-8)
    assert said in " ".join(found.notes) if said else not found.notes


def mixed(x):
    """A row has one of two offsets, summed out."""
    weight, offset = pyro.param("weight"), pyro.param("offset")
    with pyro.plate("data", len(x)):
        kind = pyro.sample("kind", dist.Categorical(torch.tensor([0.3, 0.7])), infer={"enumerate": "parallel"})
        z = pyro.sample("z", dist.Normal(torch.zeros(weight.shape[1]), 1.0).to_event(1))
        mean = z @ weight.T + offset + 2.0 * kind[..., None]
        pyro.sample("x", dist.Normal(mean, ll.NOISE).to_event(1), obs=x)


def guide_of_kinds(x):
    with pyro.plate("data", len(x)):
        kind = pyro.sample("kind", dist.Categorical(torch.tensor([0.5, 0.5])))
        loc = (x - 2.0 * kind[..., None]) @ pyro.param("encoder").T + pyro.param("shift")
        pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=pyro.param("factor").tril()))


@pytest.mark.parametrize("guide", [ll.guide, guide_of_kinds])
def test_discrete_sites_are_summed_out_or_sampled(guide):
    used = ll.trained(TRUTH, X, used_model=mixed, used_guide=guide, factor=2.0 * np.eye(2))
    exact = logsumexp([np.log(0.3) + EXACT, np.log(0.7) + TRUTH.log_p(X - 2.0)], axis=0)
    found = log_marginal(used, num_samples=4000)
    assert abs(found.mean - exact.mean()) < 4 * found.mean_se
    assert found.mean_se < 0.03


def test_guide_of_the_fitted_rows_alone():
    used = fit(ll.model_at(TRUTH), {"x": X}, SVI(guide="normal", num_steps=300, num_samples=100), seed=1)
    found = log_marginal(used, num_samples=1000)
    error = np.hypot(used.state["elbo_se"], np.sqrt(np.sum(found.elbo_se**2)))
    assert abs(found.elbo.sum() - used.state["elbo"]) < 4 * error
    with pytest.raises(InputError, match="knows no other rows"):
        log_marginal(used, {"x": X[:30]})


# --- Refusals ---------------------------------------------------------------------------------------------------------


def global_scale(x):
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, scale), obs=x)


def test_what_cannot_be_scored_is_refused(exact_fit):
    quick = {"num_steps": 2, "num_samples": 10, "backend": "pyro"}
    with pytest.raises(InputError, match="site 'scale': is not in the plate"):
        log_marginal(fit(global_scale, {"x": X[:, 0]}, SVI(**quick)))
    with pytest.raises(InputError, match="does not split into rows"):
        log_marginal(fit(ll.model_at(TRUTH), {"x": X[:9]}, SVI(guide="multivariate_normal", **quick)))
    with pytest.raises(InputError, match="no trained guide"):
        log_marginal(fit(ll.model_at(TRUTH), {"x": X[:2]}, NUTS(num_samples=20, num_warmup=20, num_chains=1)))
    with pytest.raises(InputError, match="num_samples: expected an integer of at least 100"):
        log_marginal(exact_fit, num_samples=5)
    with pytest.raises(InputError, match=r"new_data\['x'\]"):
        log_marginal(exact_fit, {"x": np.full((3, 5), np.inf)})
    for rows in (0, 61, [1, 1], [-1], [60], [0.5], True):
        with pytest.raises(InputError, match="rows: expected"):
            log_marginal(exact_fit, rows=rows)


def test_number_of_rows_that_is_no_length_of_data_is_refused():
    def fixed(x):
        with pyro.plate("data", 60):
            z = pyro.sample("z", dist.Normal(pyro.param("m", torch.tensor(0.0)), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def own(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x * pyro.param("a", torch.tensor(0.5)), 1.0))

    used = fit(fixed, {"x": X[:, 0]}, SVI(guide=own, num_steps=2, num_samples=10, backend="pyro"))
    with pytest.raises(InputError, match=r"is not 59 rows long.*len\(x\)"):
        log_marginal(used)
