"""Settings that no engine can run with are refused in one sentence that lists what is known."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal

from inference import NUTS, SVI, AutoVI, InputError, fit
from tests.awkward_models import (
    Y,
    bounded_latent,
    guide_of_wrong_shape,
    guide_that_fails,
    guide_with_more,
    guide_without_arguments,
    guide_without_mu,
    normal,
    poisson_latent,
    runaway_guide,
    subsampled,
)


def fit_normal(engine, *, model=normal, y=Y, **options):
    return fit(model, {"y": y}, engine, **options)


def short(**settings):
    return SVI(**{"num_steps": 2, "num_samples": 4, "num_chains": 1} | settings)


Adam = torch.optim.Adam
BAD_SETTINGS: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "engine by name": (lambda: fit_normal("nuts"), ["engine: expected NUTS", "SVI", "AutoVI", "got 'nuts'"]),
    "no engine": (lambda: fit_normal(None), ["engine: expected NUTS", "got None"]),
    "engine class": (lambda: fit_normal(SVI), ["engine: expected NUTS", "got <class"]),
    "acceptance text": (lambda: NUTS(target_accept="0.8"), ["target_accept: expected", "got '0.8'"]),
    "lr bool": (lambda: SVI(lr=True), ["lr: expected", "got True"]),
    "guide list": (lambda: fit_normal(short(guide=["normal"])), ["guide: expected one of", "got"]),
    "negative seed": (lambda: fit_normal(short(), seed=-1), ["seed: expected", "integer", "got -1"]),
    "huge seed": (lambda: fit_normal(short(), seed=2**32), ["seed: expected", "integer", "got 4294967296"]),
    "bool seed": (lambda: fit_normal(short(), seed=True), ["seed: expected", "got True"]),
    "float seed": (lambda: fit_normal(short(), seed=1.0), ["seed: expected", "got 1.0"]),
    "no seed": (lambda: fit_normal(short(), seed=None), ["seed: expected", "got None"]),
    "backend": (lambda: NUTS(backend="stan"), ["backend: expected one of auto, native, python, pyro", "got 'stan'"]),
    "adaptation": (lambda: NUTS(adaptation="dense"), ["adaptation: expected one of diag, low_rank", "got 'dense'"]),
    "adaptation of Pyro": (
        lambda: NUTS(backend="pyro", adaptation="low_rank"),
        ["adaptation: Pyro's kernel", "use backend='auto'"],
    ),
    "acceptance of 1": (lambda: NUTS(target_accept=1.0), ["target_accept: expected .* between 0 and 1", "got 1.0"]),
    "acceptance nan": (lambda: NUTS(target_accept=float("nan")), ["target_accept: expected", "got nan"]),
    "no lr": (lambda: SVI(lr=0.0), ["lr: expected a number above 0", "got 0.0"]),
    "lr nan": (lambda: SVI(lr=float("nan")), ["lr: expected a number above 0", "got nan"]),
    "lr text": (lambda: SVI(lr="0.1"), ["lr: expected a number above 0", "got '0.1'"]),
    "clip_norm": (lambda: SVI(clip_norm=-1.0), ["clip_norm: expected a number above 0", "got -1.0"]),
    "dtype": (lambda: SVI(dtype="float16"), ["dtype: expected one of float32, float64", "got 'float16'"]),
    "schedule without end": (
        lambda: SVI(lr_schedule=partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.9)),
        ["lr_schedule: needs num_steps"],
    ),
    "optimiser made": (
        lambda: SVI(optimizer=Adam([torch.zeros(1, requires_grad=True)])),
        ["optimizer: expected one of adam, .* a torch optimiser class"],
    ),
    "optimiser by name": (lambda: SVI(optimizer="sgd"), ["optimizer: expected one of adam, .*lbfgs", "got 'sgd'"]),
    "rate of lbfgs": (lambda: SVI(optimizer="lbfgs", lr=0.1), ["lr: L-BFGS finds its steps itself"]),
    "lbfgs of a point": (
        lambda: fit_normal(short(guide="delta", optimizer="lbfgs")),
        ["optimizer=.lbfgs.: the guide draws no base noise", "MAP"],
    ),
    "clipping Pyro's optimiser": (
        lambda: SVI(optimizer=pyro.optim.Adam({"lr": 0.1}), clip_norm=1.0),
        ["optimizer: a Pyro optimiser carries its own", "drop"],
    ),
    "guide": (
        lambda: fit_normal(short(guide="mean_field")),
        ["guide: expected one of delta, normal, .*structured", "got 'mean_field'"],
    ),
    "guide number": (lambda: fit_normal(short(guide=3)), ["guide: expected one of", "got 3"]),
    "guide class": (
        lambda: fit_normal(short(guide=AutoNormal)),
        ["guide: must take the same arguments", "does not take y"],
    ),
    "guide without arguments": (
        lambda: fit_normal(short(guide=guide_without_arguments)),
        ["guide: must take the same arguments", "does not take y"],
    ),
    "guide that fails": (
        lambda: fit_normal(short(guide=guide_that_fails)),
        ["guide: fails on the data", "KeyError: 'tank'"],
    ),
    "guide without a latent": (
        lambda: fit_normal(short(guide=guide_without_mu)),
        ["guide: does not sample .* 'mu'", "it samples other"],
    ),
    "guide with more": (lambda: fit_normal(short(guide=guide_with_more)), ["guide: samples 'helper'", "is_auxiliary"]),
    "guide of wrong shape": (
        lambda: fit_normal(short(guide=guide_of_wrong_shape)),
        ["guide: site 'mu' has shape .2,.", r"model's has \(\)"],
    ),
    "guide at infinity": (
        lambda: fit_normal(short(guide=runaway_guide)),
        ["'loc'|'mu'", "not finite at the first step", "inf"],
    ),
    "guide of an integer": (
        lambda: fit_normal(short(), model=poisson_latent),
        ["guide='normal': the integer site 'k'", "write a guide"],
    ),
    "laplace of a subsample": (
        lambda: fit_normal(short(guide="laplace"), model=subsampled),
        ["guide='laplace': needs a flat log density", "subsampled"],
    ),
    "elbo": (
        lambda: fit_normal(short(elbo="elbow")),
        ["elbo: expected one of trace, trace_mean_field, .*renyi", "got 'elbow'"],
    ),
    "elbo class": (lambda: fit_normal(short(elbo=Trace_ELBO)), ["elbo: expected a name or a pyro.infer.ELBO object"]),
    "elbo that cannot enumerate": (
        lambda: fit_normal(short(elbo="trace"), model=bounded_latent),
        ["elbo: Trace_ELBO cannot sum out", "'k'", "trace_enum"],
    ),
    "renyi of one particle": (
        lambda: fit_normal(short(elbo="renyi")),
        ["elbo='renyi': needs num_particles of at least 2"],
    ),
    "unknown plate of coords": (
        lambda: fit_normal(short()).to_datatree(coords={"rows": [1, 2, 3]}),
        ["coords: there is no dim 'rows'", "row"],
    ),
}
COUNTS = {
    NUTS: ("num_warmup", "num_samples", "num_chains", "max_tree_depth"),
    SVI: ("num_steps", "num_samples", "num_chains", "num_particles"),
    AutoVI: ("num_samples", "num_chains", "num_starts"),
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_bad_settings_are_refused(name):
    request, says = BAD_SETTINGS[name]
    with pytest.raises(InputError) as refusal:
        request()
    message = str(refusal.value)
    assert "\n" not in message
    for part in says:
        assert re.search(part, message), f"{part!r} not in: {message}"


@pytest.mark.parametrize(("engine", "name"), [(engine, name) for engine, names in COUNTS.items() for name in names])
@pytest.mark.parametrize("value", [0, -3, 2.0, True, "7", float("nan")])
def test_counts_are_positive_integers(engine, name, value):
    with pytest.raises(InputError, match=rf"^{name}: expected an integer of at least \d, got {value!r}\.$"):
        engine(**{name: value})
    assert getattr(engine(**{name: 7}), name) == 7  # the mended


def test_a_point_guide_has_no_weights_and_says_why():
    result = fit_normal(short(guide="delta"))
    assert set(result.stats) == {"lp"}
    assert any("no log weights: a point guide has no density" in note for note in result.notes)
    assert set(fit_normal(short()).stats) == {"lp", "log_q", "log_weight"}
