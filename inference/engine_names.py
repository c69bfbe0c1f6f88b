"""The engines as the command line names them: ``nuts``, ``nuts:low_rank``, ``auto``, ``svi:GUIDE`` and so on."""

from dataclasses import replace
from typing import Any

from inference.autovi import AutoVI
from inference.errors import InputError
from inference.guides import GUIDES
from inference.laplace import MAP, Laplace
from inference.nuts import NUTS
from inference.svi import SVI

KNOWN = (
    "nuts, nuts:low_rank, nuts:native, nuts:python, nuts:pyro, auto, laplace, map, svi, svi:GUIDE (such as svi:spline)"
)
_SIMPLE = {"auto": AutoVI, "laplace": Laplace, "map": MAP}


def parse_engines(
    names: str,
    *,
    num_samples: int | None = None,
    num_warmup: int | None = None,
    num_chains: int | None = None,
    backend: str | None = None,
) -> dict[str, Any]:
    """Make the engines that a comma-separated list names, keyed by their names.

    Parameters
    ----------
    names
        As in ``auto,nuts,svi:normal``.
    num_samples, num_warmup, num_chains
        Passed to the engines; None leaves an engine's own default. Warm-up concerns NUTS only.
    backend
        How the engines run whose names do not say it, as in ``nuts:pyro``.

    Raises
    ------
    InputError
        An unknown name, a name twice, or a warm-up for engines that have none.
    """
    listed = [name.strip() for name in names.split(",") if name.strip()]
    if not listed:
        raise InputError(f"engines: none named; known are {KNOWN}")
    twice = next((name for name in listed if listed.count(name) > 1), None)
    if twice:
        raise InputError(f"engines: '{twice}' is named twice")
    if num_warmup is not None and not any(name.startswith("nuts") for name in listed):
        raise InputError("--num-warmup: only nuts warms up, and it is not among the engines")
    sizes = {"num_samples": num_samples, "num_chains": num_chains}
    sizes = {key: value for key, value in sizes.items() if value is not None}
    warmup = {} if num_warmup is None else {"num_warmup": num_warmup}
    made = {name: _make(name, sizes, warmup) for name in listed}
    return made if backend is None else {name: _running_on(backend, name, engine) for name, engine in made.items()}


def _running_on(backend: str, name: str, engine: Any) -> Any:
    if engine.backend != "auto":  # its name says so
        return engine
    try:
        return replace(engine, backend=backend)
    except InputError as error:
        raise InputError(f"--backend {backend}: engine '{name}' has none ({error})") from error


def _make(name: str, sizes: dict[str, int], warmup: dict[str, int]) -> Any:
    family, _, variant = name.partition(":")
    if name in _SIMPLE:
        return _SIMPLE[name](**sizes)
    if family == "svi":
        if variant and variant not in GUIDES:  # known before another engine has run for minutes
            raise InputError(f"engine '{name}': guide '{variant}' is not known; known are {', '.join(GUIDES)}")
        return SVI(**sizes, **({"guide": variant} if variant else {}))
    if family == "nuts":
        return NUTS(**sizes, **warmup, **_nuts_variant(name, variant))
    raise InputError(f"engine '{name}': not known; known are {KNOWN}")


def _nuts_variant(name: str, variant: str) -> dict[str, str]:
    variants = {
        "": {},
        "low_rank": {"adaptation": "low_rank"},
        "native": {"backend": "native"},
        "python": {"backend": "python"},
        "pyro": {"backend": "pyro"},
    }
    if variant not in variants:
        raise InputError(f"engine '{name}': not known; known are {KNOWN}")
    return variants[variant]


def reference_of(engines: dict[str, Any], named: str | None) -> str:
    """Choose the reference of a comparison: the one named, else ``nuts``, else the only engine that is NUTS."""
    if named is not None:
        if named not in engines:
            raise InputError(f"--reference '{named}': not among the engines {', '.join(engines)}")
        return named
    chains = [name for name in engines if name.startswith("nuts")]
    if "nuts" in chains or len(chains) == 1:
        return "nuts" if "nuts" in chains else chains[0]
    raise InputError(f"--reference is needed: which of {', '.join(engines)} is to be believed?")
