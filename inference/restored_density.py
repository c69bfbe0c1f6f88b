"""The log density of a finished fit, made once however many checks ask for it."""

from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from inference.density import Density
from inference.errors import InputError
from inference.fit import Fit
from inference.sites import Sites

# Reading, recording and verifying a density can take longer than a check with it.
_MADE: WeakKeyDictionary[Fit, Density] = WeakKeyDictionary()


@contextmanager
def restored_density(fit: Fit, *, num_gradients: float) -> Iterator[tuple[Density, Sites]]:
    """Isolate, restore the fit's parameters, and give its density, compiled if that pays for so many gradients.

    Raises
    ------
    InputError
        The model has no flat density, or the fit was loaded without its model.
    """
    if "unconstrained" not in fit.state:
        raise InputError("fit: the model has no flat log density (subsampled plates or integer sites).")
    with fit.restored() as sites:
        density = _MADE.get(fit)
        if density is None:
            density = _MADE[fit] = Density(sites, hold_params=True, propose=getattr(fit.model, "start", None))
        density.compile(num_gradients)
        yield density, sites
