"""The model at new data, with the draws of an old fit: what fits is read anew, what cannot fit is refused."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from inference.errors import InputError
from inference.fit import Fit
from inference.sites import Sites, read_sites
from inference.validate import missing_argument, prepare_data


def sites_at(fit: Fit, sites: Sites, new_data: Mapping[str, Any] | None) -> Sites:
    """Read the model at new data, at which the draws of its continuous sites must still make sense.

    Parameters
    ----------
    fit, sites
        A fit, and its model as `Fit.restored` gives it (this is to be called inside that block).
    new_data
        Every array of the data anew. Numbers and other settings keep their values unless they are given. None: the
        data of the fit.

    Raises
    ------
    InputError
        Data that are missing, empty, of another kind or not finite; a model that fails on them; a site whose shape
        depends on what has changed, or that belongs to the old rows.
    """
    if new_data is not None:
        old, sites = sites, read_new(fit, sites, new_data)
        _check_latents(fit, old, sites)
    if sites.subsampled:
        plate, size = next(iter(sites.subsampled.items()))
        raise InputError(
            f"plate '{plate}' is subsampled ({size} of {sites.plate_sizes[plate]}), so this would concern a random "
            "part of the data; give new_data with which the model takes all rows, or save the fit and load it with the "
            "model without subsample_size."
        )
    for name in [*sites.latent, *sites.unenumerable]:
        if name not in fit.draws:
            raise InputError(f"fit: has no draws of site '{name}', which the model needs.")
    return sites


def latent_draws(fit: Fit, sites: Sites, num_draws: int | None = None) -> tuple[dict[str, np.ndarray], tuple[int, int]]:
    """Draws of the sites that the enumerated density takes, ``name -> (n, *shape)``, and the chains and draws in n.

    Parameters
    ----------
    fit, sites
        Their draws and names.
    num_draws
        Take so many of each chain, evenly spread.
    """
    chosen = np.arange(fit.num_draws)
    if num_draws is not None:
        if isinstance(num_draws, bool) or not isinstance(num_draws, int) or not 1 <= num_draws <= fit.num_draws:
            raise InputError(f"num_draws: expected 1 to {fit.num_draws} (draws per chain), got {num_draws!r}.")
        chosen = (np.arange(num_draws) * fit.num_draws) // num_draws
    names = [*sites.latent, *sites.unenumerable]
    draws = {name: fit.draws[name][:, chosen].reshape(-1, *fit.draws[name].shape[2:]) for name in names}
    return draws, (fit.num_chains, len(chosen))


def read_new(fit: Fit, old: Sites, new_data: Mapping[str, Any]) -> Sites:
    """Read the model at new data, whose latents may have any shape; arguments and errors as for `sites_at`."""
    if not isinstance(new_data, Mapping):
        raise InputError(f"new_data: expected a mapping as the fit was given, got {type(new_data).__name__}.")
    read_off = getattr(fit.model, "settings_from", None)
    learnt = read_off(old.data) if callable(read_off) else {}
    # a tuple is a setting, such as the widths of layers
    arrays = {name: v for name, v in old.data.items() if isinstance(v, torch.Tensor | list | np.ndarray)}
    missing = [name for name in arrays if name not in new_data and name not in learnt]
    if missing:
        raise InputError(
            f"new_data: needs {', '.join(missing)}; give every array of the data anew, fit.data['{missing[0]}'] where "
            "it stays as it was."
        )
    settings = {name: value for name, value in old.data.items() if name not in arrays}
    given = {**settings, **learnt, **new_data}
    prepared = prepare_data(old.function, given, may_miss=missing_argument(fit.model), label="new_data")
    for name, value in prepared.items():
        if isinstance(value, torch.Tensor):
            prepared[name] = _like(f"new_data['{name}']", value, arrays.get(name))
    return read_sites(old.function, prepared)


def _like(label: str, value: torch.Tensor, old: Any) -> torch.Tensor:
    """Refuse an array that is of another kind than the one at the fit."""
    if value.numel() == 0:
        raise InputError(f"{label}: is empty, with shape {tuple(value.shape)}; give at least one row.")
    if not isinstance(old, torch.Tensor):
        return value
    if value.dim() != old.dim():
        raise InputError(
            f"{label}: expected {old.dim()} axes, as at the fit {tuple(old.shape)}, got {tuple(value.shape)}."
        )
    if old.is_floating_point():
        return value.to(old.dtype)
    if value.is_floating_point():
        raise InputError(f"{label}: expected integers, as at the fit, got {value.dtype}.")
    # As an index a negative code would silently be counted from the end; pandas codes what it does not know as -1.
    if old.numel() and (old >= 0).all() and (value < 0).any():
        raise InputError(
            f"{label}: {int((value < 0).sum())} values are negative, and none was at the fit; an unseen category?"
        )
    return value


def _check_latents(fit: Fit, old: Sites, new: Sites) -> None:
    """Refuse data that give a latent another shape, or to which its draws do not belong."""
    before, after = {**old.latent, **old.unenumerable}, {**new.latent, **new.unenumerable}
    for name in [*after, *before]:
        if name not in before or name not in after:
            there, absent = ("at the new data", "at the fit") if name in after else ("at the fit", "at the new data")
            raise InputError(
                f"site '{name}': is in the model {there} but not {absent}, so the draws do not fit; only data that "
                "leave the continuous sites as they are can be predicted."
            )
        if after[name].shape == before[name].shape:
            continue
        shapes = f"shape {before[name].shape} at the fit and {after[name].shape} at the new data"
        for plate in after[name].plates:
            sizes = old.plate_sizes.get(plate), new.plate_sizes[plate]
            if sizes[0] != sizes[1]:
                raise InputError(
                    f"site '{name}': cannot be predicted, since it has a value for each element of plate '{plate}' "
                    f"({sizes[0]} at the fit, {sizes[1]} at the new data), and the draws know the old ones only."
                )
        raise InputError(
            f"site '{name}': has {shapes}; expected as many columns and categories as at the fit. Where the model "
            "reads a number off its data (y.max() + 1), give it as an argument."
        )
    for name, site in after.items():
        for observed, seen in new.observed.items():
            local = bool(seen.plates) and set(seen.plates) <= set(site.plates)
            was = old.observations.get(observed)
            if local and (was is None or not torch.equal(new.observations[observed], was)):
                raise InputError(
                    f"site '{name}': cannot be predicted, since it has a value of its own for each observation of "
                    f"'{observed}', and the draws know the old ones only."
                )
