"""The search for modes that a fit has no draws in: finds what is there, and does not cry wolf."""

from dataclasses import replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from inference import NUTS, SVI, AutoVI, InputError, fit
from inference.density import Density
from inference.modes import modes_seen, search_modes
from inference.starts import climb_to_maximum
from ppl_models import MODELS

ONE_MODE_ONLY = SVI(guide="multivariate_normal", optimizer="lbfgs", num_samples=200, num_chains=2)
SVI_SHORT = SVI(num_steps=200, num_samples=200, num_chains=2)
ONE_CHAIN = NUTS(num_warmup=200, num_samples=200, num_chains=1)


def square(y, drift=0.0):
    """Two modes, at plus and minus the root of y; ``drift`` makes the left one ``exp(2 drift root)`` times lighter."""
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    pyro.factor("drift", drift * mu)
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(mu**2, 0.5), obs=y)


def banana():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("z", dist.Normal(x**2, 0.3))


def skewed(y):
    scale = pyro.sample("scale", dist.LogNormal(0.0, 2.0))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Gamma(0.5, scale), obs=y)


def ripple():
    """One normal mode with a ripple of half a nat, which nobody would call two modes."""
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.factor("ripple", 0.25 * torch.cos(12 * x))


SQUARE = {"y": [2.25] * 5}
TWO_MODES = {"square": (square, SQUARE)}
ONE_MODE = {
    "eight schools": (MODELS["eight_schools"], MODELS["eight_schools"].data()),
    "linear regression": (MODELS["linear_regression"], MODELS["linear_regression"].data()),
    "banana": (banana, {}),
    "skewed": (skewed, {"y": [0.1, 0.2, 3.0]}),
    "ripple": (ripple, {}),
    "light mode": (square, {**SQUARE, "drift": 2.0}),  # its share is exp(-6) = .25 %
}


@pytest.mark.parametrize(
    ("name", "engine"),
    [("square", ONE_MODE_ONLY), ("square", SVI_SHORT), ("square", ONE_CHAIN)],
    ids=["square lbfgs", "square svi", "square one chain"],
)
def test_finds_the_second_mode(name, engine):
    found = search_modes(fit(*TWO_MODES[name], engine, seed=1))
    assert found.num_starts == 8
    assert 1 <= found.num_elsewhere <= found.num_settled <= 8
    assert found.message.startswith(
        f"{found.num_elsewhere} of 8 dispersed starts ended in a mode where the fit has no draws"
    )


@pytest.mark.parametrize("name", ONE_MODE)
def test_sees_no_second_mode_where_there_is_none(name):
    found = search_modes(fit(*ONE_MODE[name], ONE_MODE_ONLY, seed=1))
    assert found.num_elsewhere == 0
    assert found.num_settled >= 7
    assert found.message.endswith("none in a mode away from the fit.")


def test_a_light_mode_with_a_fit_in_it_is_left_for_the_heavy_one():
    def at(place):
        result = fit(square, {**SQUARE, "drift": 2.0}, ONE_MODE_ONLY, seed=1)
        points = place + 0.1 * np.random.default_rng(0).standard_normal((2, 200, 1))
        return search_modes(replace(result, state={**result.state, "unconstrained": points}))

    assert at(1.5).num_elsewhere == 0
    assert at(-1.5).num_elsewhere > 0


@pytest.mark.parametrize(("share", "covered"), [(0.5, True), (0.2, True), (0.0, False), (0.005, False)])
def test_a_fit_with_draws_in_both_modes_lacks_none(share, covered):
    result = fit(square, SQUARE, ONE_MODE_ONLY, seed=1)
    rng = np.random.default_rng(0)
    points = 1.5 + 0.1 * rng.standard_normal(400)
    points[: int(400 * share)] *= -1
    both = replace(result, state={**result.state, "unconstrained": rng.permutation(points).reshape(2, 200, 1)})
    assert (search_modes(both).num_elsewhere == 0) == covered


def test_a_funnel_has_no_mode_to_settle_in():
    model = MODELS["eight_schools_centered"]
    found = search_modes(fit(model, model.data(), SVI_SHORT, seed=1), num_starts=4)
    assert found.num_settled < found.num_starts
    assert found.num_elsewhere == 0


def test_a_mixture_in_the_wrong_mode():
    """One of these starts leads 140 nats below the other mode of this posterior."""
    model = MODELS["gaussian_mixture"]
    wrong = fit(model, model.data(), SVI_SHORT, seed=1)
    with wrong.restored() as sites:
        density = Density(sites)
        starts = density.starts(
            8, generator=np.random.default_rng(1), radius=4.0
        )  # most within 2 lead to the right one
        ends = [climb_to_maximum(density, p)[0] for p in starts]
        values = density.log_density(np.array(ends))
    assert np.ptp(values) > 100
    points = ends[np.argmin(values)] + 1e-2 * np.random.default_rng(0).standard_normal((2, 200, len(ends[0])))
    wrong = replace(wrong, state={**wrong.state, "unconstrained": points})
    assert search_modes(wrong, num_starts=4).num_elsewhere > 0


def test_auto_covers_both_modes_and_has_seen_so():
    result = fit(square, SQUARE, AutoVI(), seed=1)
    seen = modes_seen(result)
    assert (seen.num_starts, seen.num_elsewhere) == (26, 0)  # the engine's own eight, and others about its draws
    assert abs((result.draws["mu"] > 0).mean() - 0.5) < 4.5 * 0.5 / np.sqrt(result.state["importance"]["ess"])


def test_equal_seeds_equal_searches():
    result = fit(square, SQUARE, ONE_MODE_ONLY, seed=1)
    before = torch.get_rng_state()
    assert search_modes(result, seed=3) == search_modes(result, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    counts = {search_modes(result, num_starts=4, seed=seed).num_elsewhere for seed in range(6)}
    assert len(counts) > 1  # the seed is used
    assert search_modes(result, num_starts=3).num_starts == 3


def test_point_guides_can_be_searched_from():
    found = search_modes(fit(square, SQUARE, SVI(guide="delta", num_steps=200, num_samples=4, num_chains=1)))
    assert found.num_elsewhere > 0


def test_a_model_without_a_flat_density_is_refused():
    def subsampled(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("row", len(y), subsample_size=2) as i:
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y[i])

    with pytest.raises(InputError, match="no flat log density"):
        search_modes(fit(subsampled, {"y": [1.0, 2.0, 3.0]}, SVI_SHORT))
