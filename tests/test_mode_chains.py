"""Chains in several modes are put together by the modes' masses, which are those of closed forms."""

from dataclasses import replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import norm

from inference import AutoVI, check, fit
from inference.density import Density
from inference.diagnostics import chain_mixing
from inference.gaussian import Gaussian
from inference.importance import propose
from inference.mode_chains import sample_modes
from inference.sites import read_sites
from inference.storage import load_fit
from inference.verdict_kinds import VerdictKind

PLACES, SDS = (-6.0, 6.0), (0.5, 1.5)


def hills(left=0.75, dim=2):
    """Normal distributions to either side, with a factor of e^2 that is the evidence."""
    x = pyro.sample("x", dist.ImproperUniform(dist.constraints.real_vector, (), (dim,)))
    sides = zip((left, 1 - left), PLACES, SDS, strict=True)
    heights = [np.log(weight) + dist.Normal(place, sd).log_prob(x).sum() for weight, place, sd in sides]
    pyro.factor("hills", torch.logsumexp(torch.stack(heights), 0) + 2.0)


def weighed(left, *, num_samples=500, seed=0, widths=(1.0, 1.0)):
    """Chains from proposals that think both modes equally heavy and, by default, have the wrong widths."""
    density = Density(read_sites(lambda: hills(left), {}))
    density.compile()
    components = [Gaussian(np.full(2, m + 0.3), w * np.eye(2)) for m, w in zip(PLACES, widths, strict=True)]
    rng = np.random.default_rng(seed)
    found = propose(density.log_density, components, [0.0, 0.0], 2000, dim=2, rng=rng)
    return sample_modes(density, components, found, num_samples=num_samples, num_chains=4, seed=seed)


@pytest.mark.parametrize("left", [0.75, 0.5, 0.05])
def test_masses_and_evidence_are_those_of_the_closed_form(left):
    chains = weighed(left)
    assert chains.masses == pytest.approx([left, 1 - left], abs=4 * chains.mass_se.max())
    assert 0 < chains.mass_se.max() < 0.02
    assert chains.log_evidence == pytest.approx(2.0, abs=4 * chains.log_evidence_se)
    assert chains.log_evidence_se < 0.05


def test_every_chain_has_draws_of_every_mode_in_its_share():
    chains = weighed(0.75)
    assert chains.points.shape == (4, 500, 2)
    assert (chains.points[:, :, 0] < 0).mean(axis=1) == pytest.approx(np.full(4, chains.masses[0]), abs=0.005)
    assert chain_mixing(chains.points).rhat.max() < 1.02
    for place, sd in zip(PLACES, SDS, strict=True):
        own = chains.points[np.sign(chains.points[:, :, 0]) == np.sign(place)]
        assert own.mean(axis=0) == pytest.approx(np.full(2, place), abs=4 * sd / np.sqrt(0.3 * len(own)))
        assert own.std(axis=0) == pytest.approx(np.full(2, sd), rel=4 / np.sqrt(0.6 * len(own)))
    logs = [norm.logpdf(chains.points, m, s).sum(-1) for m, s in zip(PLACES, SDS, strict=True)]
    expected = np.logaddexp(np.log(0.75) + logs[0], np.log(0.25) + logs[1]) + 2.0
    assert chains.stats["lp"] == pytest.approx(expected, abs=1e-4)  # kept in single precision


def test_the_error_of_the_masses_is_what_it_says():
    runs = [weighed(0.75, num_samples=200, seed=seed) for seed in range(12)]
    z = [(run.masses[0] - 0.75) / run.mass_se[0] for run in runs]
    assert 0.4 < np.std(z) < 1.8  # chi of 12: .1 % and 99.9 % quantiles, and some room for the estimate of the error


def two_rings():
    """Rings, which no rung can be, to either side of a wall; the right one is e times heavier."""
    x = pyro.sample("x", dist.Normal(0.0, 10.0).expand([3]).to_event(1))
    pyro.factor("well", -4.0 * (x[0].abs() - 3.0) ** 2 + 0.5 * torch.sign(x[0]))
    pyro.factor("ring", -4.0 * ((x[1] ** 2 + x[2] ** 2 + 0.1).sqrt() - 4.0) ** 2 + 0.05 * x[1])


def test_auto_hands_over_in_both_modes(tmp_path):
    result = fit(two_rings, {}, AutoVI(num_samples=3000), seed=1)
    assert (result.state["rung"], result.method) == ("nuts", "mcmc")
    assert "modes" in result.status.message
    right = (result.draws["x"][..., 0] > 0).mean(axis=1)
    assert right == pytest.approx(np.full(4, np.e / (1 + np.e)), abs=4 * result.state["modes"]["se"].max() + 0.01)
    assert check(result).kind is VerdictKind.TRUST
    loaded = load_fit(result.save(tmp_path / "fit"), model=two_rings)
    assert np.array_equal(loaded.state["modes"]["mass"], result.state["modes"]["mass"])
    for se, said in ((0.2, "+-0.20"), (np.inf, "by importance weights only")):
        doubtful = replace(result, state=result.state | {"modes": {"mass": np.full(2, 0.5), "se": np.full(2, se)}})
        assert check(doubtful).kind is VerdictKind.CANNOT_TELL
        assert said in check(doubtful).reason


@pytest.mark.parametrize(("num_samples", "num_chains"), [(4, 1), (10, 2)])
def test_few_draws_can_be_asked_for(num_samples, num_chains):
    """A mode's part of them is a draw or two, of which no chain can be made."""
    result = fit(two_rings, {}, AutoVI(num_samples=num_samples, num_chains=num_chains), seed=1)
    assert len(result.state["modes"]["mass"]) > 1
    assert result.draws["x"].shape == (num_chains, num_samples, 3)
    assert check(result).kind is not VerdictKind.TRUST
