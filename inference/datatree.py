"""A fit as ArviZ data: one `DataTree`, the same for every engine."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from math import prod
from typing import Any

import numpy as np
import torch
import xarray as xr
from arviz_base import dict_to_dataset

from inference import __version__
from inference.conditional import log_likelihood as pointwise
from inference.conditional import predictive, term_layout
from inference.conditional import prior as prior_draws
from inference.errors import InputError
from inference.fit import Fit
from inference.sites import Sites

# Draws from the prior where `prior=True`; a prior needs no more to be seen.
PRIOR_DRAWS = 500
# Numbers in one variable of a group that has a value for each draw and observation: 2 GB, which ArviZ copies once more.
MAX_GROUP = 2**28
SAMPLE_DIMS = ("chain", "draw")
NO_SAMPLES = ("observed_data", "constant_data")

# variable -> values, and the names of its axes after chain and draw
Group = dict[str, tuple[np.ndarray, list[str]]]


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
        ``coords`` or ``dims`` that do not fit, or a group that the model cannot give.

    Notes
    -----
    xarray cannot hold a dim that is named like a variable, or that has two lengths: the former becomes
    ``<name>_plate``, the later ones of the latter ``<site>_dim_<axis>``. Slashes in names become dots.

    Examples
    --------
    >>> tree = fit.to_datatree(log_likelihood=True)
    >>> arviz_stats.summary(tree)
    """
    groups: dict[str, Group] = {
        "posterior": _group(fit.draws, fit.state["dims"]),
        "sample_stats": _group(fit.stats, {}),
    }
    plates: Mapping[str, int] = {}
    if fit.model is not None:
        with fit.restored() as sites:
            _refuse_parts(sites, log_likelihood=log_likelihood, posterior_predictive=posterior_predictive, prior=prior)
            plates = sites.plate_sizes
            groups["observed_data"] = _observed_data(sites)
            groups["constant_data"] = _constant_data(sites)
            if log_likelihood:
                groups["log_likelihood"] = _log_likelihood(fit, sites)
            if posterior_predictive:
                _refuse_size("posterior_predictive", fit, {n: site.shape for n, site in sites.observed.items()})
                groups["posterior_predictive"] = _group(_chained(predictive(sites, _flat(fit)), fit), _dims(sites))
            if prior:
                groups |= _prior(sites)
    elif log_likelihood or posterior_predictive or prior:
        raise InputError("fit: loaded without its model, which these groups need; use load_fit(path, model=...).")
    if unconstrained:
        groups["unconstrained_posterior"] = _unconstrained(fit)
    groups |= _warmup(fit)
    groups = _override({name: _clean(group) for name, group in groups.items() if group}, dims or {})
    taken = {name for group in groups.values() for name in group} | set(SAMPLE_DIMS)
    groups = _consistent(groups, taken)
    labels = _coords(fit, groups, plates, coords or {}, taken)
    tree = xr.DataTree.from_dict({name: _dataset(name, group, labels) for name, group in groups.items()})
    tree.attrs |= _attributes(fit)
    if fit.history:
        tree["vi_trace"] = xr.DataTree(
            xr.Dataset({name: (_history_dim(name), value) for name, value in fit.history.items()})
        )
    return tree


def _history_dim(name: str) -> str:
    return "evaluation" if name.startswith("validation") else "step"


def _group(values: Mapping[str, np.ndarray], dims: Mapping[str, Sequence[str]]) -> Group:
    return {name: (value, list(dims.get(name, ()))) for name, value in values.items()}


def _dims(sites: Sites) -> dict[str, tuple[str, ...]]:
    return {name: site.dims for group in sites.groups() for name, site in group.items()}


def _refuse_parts(sites: Sites, **wanted: bool) -> None:
    """Refuse groups that would concern the rows which a subsampled plate happened to draw."""
    asked = [group for group, yes in wanted.items() if yes]
    if asked and sites.subsampled:
        plate, size = next(iter(sites.subsampled.items()))
        raise InputError(
            f"{asked[0]}: plate '{plate}' is subsampled ({size} of {sites.plate_sizes[plate]}), so this would show a "
            "random part of the data; save the fit and load it with the model without subsample_size."
        )


def _observed_data(sites: Sites) -> Group:
    whole = [name for name, site in sites.observed.items() if not set(site.plates) & set(sites.subsampled)]
    return _group({name: sites.observations[name].detach().numpy() for name in whole}, _dims(sites))


def _flat(fit: Fit) -> dict[str, np.ndarray]:
    return {name: value.reshape(-1, *value.shape[2:]) for name, value in fit.draws.items()}


def _chained(values: Mapping[str, np.ndarray], fit: Fit) -> dict[str, np.ndarray]:
    return {name: value.reshape(fit.num_chains, fit.num_draws, *value.shape[1:]) for name, value in values.items()}


def _log_likelihood(fit: Fit, sites: Sites) -> Group:
    kept = {**sites.latent, **sites.unenumerable}
    draws = {n: v for n, v in _flat(fit).items() if n in kept}
    if not sites.observed:
        raise InputError("log_likelihood: the model has no observed site.")
    _refuse_size("log_likelihood", fit, term_layout(sites, draws)[1])
    values, dims = pointwise(sites, draws)
    return _group(_chained(values, fit), dims)


def _refuse_size(group: str, fit: Fit, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a group of one array of these shapes for each draw where that is too much to hold."""
    draws = fit.num_chains * fit.num_draws
    for name, shape in shapes.items():
        if (size := prod(shape)) * draws > MAX_GROUP:
            raise InputError(
                f"{group}: {draws} draws of site '{name}' with {size} values are {size * draws / 2**27:.1f} GB, more "
                f"than {MAX_GROUP / 2**27:.0f}; fit with fewer num_samples, or score with log_predictive(fit, "
                "fit.data), which holds no more than some draws at a time."
            )


def _prior(sites: Sites) -> dict[str, Group]:
    drawn, replicated = prior_draws(sites, PRIOR_DRAWS)
    dims = _dims(sites)
    return {
        "prior": _group({name: value[None] for name, value in drawn.items()}, dims),
        "prior_predictive": _group({name: value[None] for name, value in replicated.items()}, dims),
    }


def _constant_data(sites: Sites) -> Group:
    """Covariates and other arrays of the data that are not observations; an axis as long as one plate is that plate."""
    observed = list(sites.observations.values())
    sizes = list(sites.plate_sizes.values())
    by_size = {size: plate for plate, size in sites.plate_sizes.items() if sizes.count(size) == 1}
    constants: Group = {}
    for name, value in sites.data.items():
        if isinstance(value, torch.Tensor) and not any(_equal(value, other) for other in observed):
            labels = [by_size.get(size, f"{name}_dim_{i}") for i, size in enumerate(value.shape)]
            labels = [d if labels.count(d) == 1 else f"{name}_dim_{i}" for i, d in enumerate(labels)]
            constants[name] = value.numpy(), labels
    return constants


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and bool((one == other).all())


def _unconstrained(fit: Fit) -> Group:
    if "unconstrained" not in fit.state:
        raise InputError("unconstrained: this fit has no unconstrained draws, because its model has no flat density.")
    return {"unconstrained": (fit.state["unconstrained"], ["coordinate"])}


def _warmup(fit: Fit) -> dict[str, Group]:
    warmup = fit.state.get("warmup")
    if warmup is None:
        return {}
    return {
        "warmup_posterior": {"unconstrained": (warmup["unconstrained"], ["coordinate"])},
        "warmup_sample_stats": _group(warmup["stats"], {}),
    }


def _clean(group: Group) -> Group:
    """Names that xarray and NetCDF can hold: no slashes, and no variable named chain or draw."""
    return {
        f"{name}_site" if name in SAMPLE_DIMS else name.replace("/", "."): (
            value,
            [d.replace("/", ".") for d in labels],
        )
        for name, (value, labels) in group.items()
    }


def _override(groups: Mapping[str, Group], dims: Mapping[str, Sequence[str]]) -> dict[str, Group]:
    """Give the axes of some variables the user's names, which must fit."""
    named = {name for group, values in groups.items() if "sample_stats" not in group for name in values}
    result = {group: dict(values) for group, values in groups.items()}
    for name, labels in dims.items():
        if name not in named:
            raise InputError(f"dims: there is no site '{name}'; the sites are {', '.join(sorted(named))}.")
        for group, values in result.items():
            if name in values and "sample_stats" not in group:
                value, old = values[name]
                num = value.ndim - (0 if group in NO_SAMPLES else len(SAMPLE_DIMS))
                if group == "log_likelihood" and num < len(labels):  # event axes are summed
                    continue
                if len(labels) != num or len(set(labels)) != num:
                    raise InputError(f"dims['{name}']: expected {num} different names instead of {old}, got {labels}.")
                values[name] = value, list(labels)
    return result


def _consistent(groups: Mapping[str, Group], taken: set[str]) -> dict[str, Group]:
    """Name every axis, and rename dims that xarray could not hold: named like a variable, or of two lengths."""
    lengths: dict[str, int] = {}
    result: dict[str, Group] = {}
    for group, values in groups.items():
        result[group] = {}
        for name, (value, given) in values.items():
            labels = []
            for i, length in enumerate(value.shape[0 if group in NO_SAMPLES else len(SAMPLE_DIMS) :]):
                label = _dim_name(given[i], taken) if i < len(given) else f"{name}_dim_{i}"
                labels.append(label if lengths.setdefault(label, length) == length else f"{name}_dim_{i}")
            result[group][name] = value, labels
    return result


def _dim_name(label: str, taken: set[str]) -> str:
    return f"{label}_plate" if label in taken else label


def _coords(
    fit: Fit, groups: Mapping[str, Group], plates: Mapping[str, int], given: Mapping[str, Sequence], taken: set[str]
) -> dict[str, list]:
    """Labels by dim: the user's, which must fit, else the model's own where they fit."""
    lengths = {_dim_name(plate, taken): size for plate, size in plates.items()}
    for group, values in groups.items():
        for value, labels in values.values():
            lengths |= dict(zip(labels, value.shape[0 if group in NO_SAMPLES else len(SAMPLE_DIMS) :], strict=True))
    own = {_dim_name(d, taken): labels for d, labels in fit.coords.items()}
    coords = {d: values for d, values in own.items() if lengths.get(d) == len(values)}
    flat = fit.state.get("labels", ())
    if lengths.get("coordinate") == len(flat):
        coords["coordinate"] = list(flat)
    for name, values in given.items():
        d, values = _dim_name(name, taken), list(values)
        if d not in lengths:
            raise InputError(f"coords: there is no dim '{name}'; the dims are {', '.join(lengths)}.")
        if len(values) != lengths[d]:
            raise InputError(f"coords['{name}']: expected {lengths[d]} labels, got {len(values)}.")
        coords[d] = values
    return coords


def _dataset(group: str, values: Group, coords: Mapping[str, list]) -> xr.Dataset:
    used = {d for _, labels in values.values() for d in labels}
    return dict_to_dataset(
        {name: value for name, (value, _) in values.items()},
        dims={name: labels for name, (_, labels) in values.items()},
        coords={d: labels for d, labels in coords.items() if d in used},
        sample_dims=[] if group in NO_SAMPLES else list(SAMPLE_DIMS),
    )


def _attributes(fit: Fit) -> dict[str, Any]:
    return {
        "inference_library": "ppl-verdict",
        "inference_library_version": __version__,
        "pyro_version": version("pyro-ppl"),
        "method": fit.method,
        "engine": repr(fit.engine),
        "backend": fit.state["backend"],
        "seed": fit.seed,
        "status": f"{fit.status.kind}: {fit.status.message}",
        "sampling_time": float(sum(fit.seconds.values())),
        "num_gradients": fit.num_gradients,
        "notes": "; ".join(fit.notes),
        "torch_version": str(torch.__version__),
    }
