"""The programs that are compared, each in a module with ``REQUIRES`` and ``prepare(case, variant)``.

``prepare``, and ``prepare_svi`` where there is one, imports what is needed and returns a function that does the work,
from `benchmarks.peers.run.Settings` to `Run` or from `Steps` to `StepsRun`; so imports are never timed.
"""

from importlib import import_module
from types import ModuleType

MODULES = {
    "ours": "ours",
    "pyro": "with_pyro",
    "numpyro": "with_numpyro",
    "pymc+nutpie": "with_pymc",
    "stan": "with_stan",
    "stan+nutpie": "with_stan_nutpie",
}
TITLES = {
    "ours": "ours",
    "pyro": "Pyro",
    "numpyro": "NumPyro",
    "pymc+nutpie": "PyMC + nutpie",
    "stan": "Stan",
    "stan+nutpie": "Stan + nutpie",
}
# NumPyro's fastest way of running four chains differs between models: all are run, the best counts.
VARIANTS = {"numpyro": ("sequential", "parallel", "vectorized")}
# PyTensor's default is C; numba is what it recommends where, as with pip, it finds no BLAS.
SVI_VARIANTS = {"pymc+nutpie": ("", "numba")}


def module(peer: str) -> ModuleType:
    """Import the module of a peer; nothing of the peer itself is imported yet."""
    return import_module(f"benchmarks.peers.{MODULES[peer]}")
