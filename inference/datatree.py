"""A fit as ArviZ data: one `DataTree`, the same for every engine."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
import xarray as xr
from arviz_base import from_dict

from inference import __version__
from inference.conditional import log_likelihood as pointwise
from inference.conditional import predictive
from inference.conditional import prior as prior_draws
from inference.errors import InputError
from inference.fit import Fit
from inference.sites import Sites

# Draws from the prior where `prior=True`; a prior needs no more to be seen.
PRIOR_DRAWS = 500
SAMPLE_DIMS = ("chain", "draw")


def to_datatree(
    fit: Fit,
    *,
    coords: Mapping[str, Sequence] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    log_likelihood: bool = False,
    posterior_predictive: bool = False,
    prior: bool = False,
    unconstrained: bool = False,
) -> xr.DataTree:
    """Hand a fit to ArviZ.

    Parameters
    ----------
    fit
        From any engine; VI draws have the chain x draw shape of MCMC draws, so that both can be drawn together.
    coords
        Labels for dims, by name of the plate or dim. Those of a `Model` are used without being asked for.
    dims
        Names of the axes of a site after chain and draw, where the plates do not give better ones.
    log_likelihood
        Add pointwise log likelihoods, discrete latents summed out, for ``arviz_stats.loo``.
    posterior_predictive, prior
        Add predictive draws; draws from the prior and the prior predictive distribution.
    unconstrained
        Add the group ``unconstrained_posterior``.

    Returns
    -------
    xarray.DataTree
        Groups ``posterior``, ``sample_stats``, ``observed_data``, ``constant_data``, ``vi_trace`` (VI: per step), the
        ``warmup_`` groups where NUTS kept them, and those asked for. Attributes say how it was made.

    Raises
    ------
    InputError
        ``coords`` of a wrong length, or a group that the model cannot give.

    Examples
    --------
    >>> tree = fit.to_datatree(log_likelihood=True)
    >>> arviz_stats.summary(tree)
    """
    groups: dict[str, dict[str, np.ndarray]] = {"posterior": dict(fit.draws), "sample_stats": dict(fit.stats)}
    names = {name: list(labels) for name, labels in fit.state["dims"].items() if name in fit.draws}
    plates: dict[str, int] = {}
    if fit.model is not None:
        with fit.restored() as sites:
            plates = sites.plate_sizes
            names |= {name: list(site.dims) for name, site in sites.observed.items()}
            groups["observed_data"] = {name: value.numpy() for name, value in sites.observations.items()}
            groups["constant_data"] = _constant_data(sites, names)
            if log_likelihood:
                groups["log_likelihood"] = _log_likelihood(fit, sites, names)
            if posterior_predictive:
                groups["posterior_predictive"] = _chained(predictive(sites, _flat(fit)), fit)
            if prior:
                drawn, replicated = prior_draws(sites, PRIOR_DRAWS)
                groups["prior"] = {name: value[None] for name, value in drawn.items()}
                groups["prior_predictive"] = {name: value[None] for name, value in replicated.items()}
    elif log_likelihood or posterior_predictive or prior:
        raise InputError("fit: loaded without its model, which these groups need; use load_fit(path, model=...).")
    if unconstrained:
        groups["unconstrained_posterior"] = _unconstrained(fit, names)
    groups |= _warmup(fit, names)
    names |= {name: list(labels) for name, labels in (dims or {}).items()}
    groups = {group: values for group, values in groups.items() if values}
    names = _consistent(groups, names)
    labels = _coords(fit, groups, names, plates, coords)
    tree = from_dict(groups, coords=labels, dims=names, save_warmup=True)
    tree.attrs |= _attributes(fit)
    if fit.history:
        tree["vi_trace"] = xr.DataTree(xr.Dataset({name: ("step", value) for name, value in fit.history.items()}))
    return tree


def _flat(fit: Fit) -> dict[str, np.ndarray]:
    return {name: value.reshape(-1, *value.shape[2:]) for name, value in fit.draws.items()}


def _chained(values: Mapping[str, np.ndarray], fit: Fit) -> dict[str, np.ndarray]:
    return {name: value.reshape(fit.num_chains, fit.num_draws, *value.shape[1:]) for name, value in values.items()}


def _log_likelihood(fit: Fit, sites: Sites, names: dict[str, list[str]]) -> dict[str, np.ndarray]:
    kept = {**sites.latent, **sites.unenumerable}
    values, dims, remarks = pointwise(sites, {n: v for n, v in _flat(fit).items() if n in kept})
    if not values:
        raise InputError(f"log_likelihood: {'; '.join(remarks) or 'the model has no observed site'}.")
    for name, labels in dims.items():
        names.setdefault(name, list(labels))
        names[name] = list(labels) + names[name][len(labels) :] if name not in sites.observed else names[name]
    return _chained(values, fit)


def _constant_data(sites: Sites, names: dict[str, list[str]]) -> dict[str, np.ndarray]:
    """Covariates and other arrays of the data that are not observations; an axis as long as one plate is that plate."""
    observed = list(sites.observations.values())
    constants = {}
    for name, value in sites.data.items():
        if not isinstance(value, torch.Tensor) or any(_equal(value, other) for other in observed) or name in names:
            continue
        sizes = list(sites.plate_sizes.values())
        by_size = {size: plate for plate, size in sites.plate_sizes.items() if sizes.count(size) == 1}
        labels = [by_size.get(size, f"{name}_dim_{i}") for i, size in enumerate(value.shape)]
        names[name] = [d if labels.count(d) == 1 else f"{name}_dim_{i}" for i, d in enumerate(labels)]
        constants[name] = value.numpy()
    return constants


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and bool((one == other).all())


def _unconstrained(fit: Fit, names: dict[str, list[str]]) -> dict[str, np.ndarray]:
    if "unconstrained" not in fit.state:
        raise InputError("unconstrained: this fit has no unconstrained draws, because its model has no flat density.")
    names["unconstrained"] = ["coordinate"]
    return {"unconstrained": fit.state["unconstrained"]}


def _warmup(fit: Fit, names: dict[str, list[str]]) -> dict[str, dict[str, np.ndarray]]:
    warmup = fit.state.get("warmup")
    if warmup is None:
        return {}
    names["unconstrained"] = ["coordinate"]
    return {"warmup_posterior": {"unconstrained": warmup["unconstrained"]}, "warmup_sample_stats": warmup["stats"]}


def _consistent(groups: Mapping[str, Mapping[str, np.ndarray]], names: dict[str, list[str]]) -> dict[str, list[str]]:
    """Rename dims that xarray could not hold: named like a variable, or of two lengths."""
    variables = {name for values in groups.values() for name in values}
    lengths: dict[str, int] = {}
    result: dict[str, list[str]] = {}
    for group, values in groups.items():
        lead = 0 if group in ("observed_data", "constant_data") else len(SAMPLE_DIMS)
        for name, value in values.items():
            labels = [f"{d}_plate" if d in variables else d for d in names.get(name, [])]
            for i, length in enumerate(value.shape[lead:]):
                label = labels[i] if i < len(labels) else f"{name}_dim_{i}"
                if lengths.setdefault(label, length) != length:
                    label = f"{name}_dim_{i}"
                labels[i : i + 1] = [label]
            result[name] = labels[: value.ndim - lead]
    return result


def _coords(
    fit: Fit,
    groups: Mapping[str, Mapping[str, np.ndarray]],
    names: Mapping[str, list[str]],
    plates: Mapping[str, int],
    given: Mapping[str, Sequence] | None,
) -> dict[str, list]:
    """Labels by dim: the user's, which must fit, else the model's own where they fit."""
    lengths = dict(plates)
    for group, values in groups.items():
        lead = 0 if group in ("observed_data", "constant_data") else len(SAMPLE_DIMS)
        for name, value in values.items():
            lengths |= dict(zip(names[name], value.shape[lead:], strict=True))
    own = getattr(fit.model, "coords", None)
    labels = {d: list(v) for d, v in (own(fit.data) if callable(own) else {}).items() if lengths.get(d) == len(v)}
    for d, values in (given or {}).items():
        if d not in lengths:
            raise InputError(f"coords: there is no dim '{d}'; the dims are {', '.join(lengths)}.")
        if len(values) != lengths[d]:
            raise InputError(f"coords['{d}']: expected {lengths[d]} labels, got {len(values)}.")
        labels[d] = list(values)
    if "coordinate" in lengths:
        labels.setdefault("coordinate", list(fit.state["labels"]))
    return {d: v for d, v in labels.items() if any(d in n for n in names.values())}


def _attributes(fit: Fit) -> dict[str, Any]:
    return {
        "inference_library": "ppl-verdict",
        "inference_library_version": __version__,
        "pyro_version": version("pyro-ppl"),
        "method": fit.engine.method,
        "engine": repr(fit.engine),
        "backend": fit.state["backend"],
        "seed": fit.seed,
        "status": f"{fit.status.kind}: {fit.status.message}",
        "sampling_time": float(sum(fit.seconds.values())),
        "num_gradients": fit.num_gradients,
        "notes": "; ".join(fit.notes),
        "torch_version": str(torch.__version__),
    }
