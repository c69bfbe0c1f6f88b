"""The only place that touches Pyro's and torch's global state."""

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _DIM_ALLOCATOR, _ENUM_ALLOCATOR, _PYRO_STACK
from pyro.util import get_rng_state, set_rng_state
from threadpoolctl import ThreadpoolController

from inference.errors import InputError

MAX_SEED = 2**32 - 1  # numpy takes no larger one
# Pyro's state belongs to the process, so threads take turns; a thread may nest blocks.
_TURN = threading.RLock()
# Threads that the callers of the blocks had, the innermost last.
_CALLER_THREADS: list[int] = []


class _BorrowedModules(Messenger):
    """Puts the parameters of networks that a model closes over back as they were.

    ``pyro.module`` hands the store the network's own tensors, so that they are trained in place.
    """

    def __init__(self, values: Mapping[str, torch.Tensor], own: Iterable[Any]) -> None:
        super().__init__()
        self.values = values
        self.own: set[int] = set()
        self.before: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self.keep(own)

    def _pyro_param(self, msg: dict) -> None:
        owned = next((a for a in msg["args"] if isinstance(a, torch.nn.Parameter)), None)
        if owned is None or id(owned) in self.own or msg["name"] in self.before:
            return
        self.before[msg["name"]] = owned, owned.detach().clone()
        value = self.values.get(msg["name"])
        if value is not None and value.shape == owned.shape:
            owned.data.copy_(value)

    def keep(self, own: Iterable[Any]) -> None:
        modules = [getattr(value, "__self__", value) for value in own]
        self.own |= {id(p) for m in modules if isinstance(m, torch.nn.Module) for p in m.parameters()}
        self.before = {name: pair for name, pair in self.before.items() if id(pair[0]) not in self.own}

    def put_back(self) -> None:
        for owned, value in self.before.values():
            owned.data.copy_(value)
            owned.grad = None


def keep_as_trained(*modules: Any) -> None:
    """Leave modules that were made inside an `isolated` block, and have run there, as the block leaves them."""
    for handler in _PYRO_STACK:
        if isinstance(handler, _BorrowedModules):
            handler.keep(modules)


@cache
def _linear_algebra() -> ThreadpoolController:
    return ThreadpoolController()


@contextmanager
def caller_threads() -> Iterator[None]:
    """Use as many threads as the caller of the outermost block has: large products of matrices are worth them."""
    own = torch.get_num_threads()
    torch.set_num_threads(_CALLER_THREADS[0] if _CALLER_THREADS else own)
    try:
        yield
    finally:
        torch.set_num_threads(own)


@contextmanager
def isolated(
    seed: int,
    *,
    dtype: torch.dtype = torch.float64,
    num_threads: int = 1,
    module_values: Mapping[str, torch.Tensor] | None = None,
    own: Iterable[Any] = (),
) -> Iterator[None]:
    """Run a block with its own parameter store, random streams, dtype, validation and threads.

    Everything is put back on the way out, also after an exception: the caller's Pyro parameter store, effect
    handlers and plates, torch (CPU and GPU), numpy and Python random streams, default dtype, grad mode, validation,
    thread count, and the parameters of networks that enter by ``pyro.module``.

    Parameters
    ----------
    seed
        From 0 to 2**32 - 1. Seeds all random streams inside the block, so that equal seeds give equal numbers.
    dtype
        Default floating dtype inside the block.
    num_threads
        Threads inside the block, of torch and of the linear algebra of numpy and scipy. One, because both split small
        operations over threads at a loss: a step of L-BFGS took 3 to 16 ms in place of 0.1.
    module_values
        Values, by full parameter name, that such networks have inside the block.
    own
        Modules, and methods of modules, that belong to the block: these are left as the block leaves them.

    Raises
    ------
    InputError
        A seed out of range.

    Examples
    --------
    >>> with isolated(seed=1):
    ...     x = torch.randn(3)
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
        raise InputError(f"seed: expected an integer from 0 to {MAX_SEED}, got {seed!r}.")
    with _TURN:
        rng_state = get_rng_state()
        cuda_state = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
        outer_dtype, outer_threads = torch.get_default_dtype(), torch.get_num_threads()
        _CALLER_THREADS.append(outer_threads)
        modules = _BorrowedModules(module_values or {}, own)
        outer_handlers, _PYRO_STACK[:] = list(_PYRO_STACK), [modules]
        outer_plates, _DIM_ALLOCATOR._stack = _DIM_ALLOCATOR._stack, []
        outer_enumeration, _ENUM_ALLOCATOR.__dict__ = _ENUM_ALLOCATOR.__dict__, {}
        try:
            torch.set_default_dtype(dtype)
            torch.set_num_threads(num_threads)
            pyro.set_rng_seed(seed)
            with (
                _linear_algebra().limit(limits=num_threads, user_api="blas"),
                pyro.get_param_store().scope(),
                pyro.validation_enabled(True),
                torch.inference_mode(mode=False),
                torch.enable_grad(),
            ):
                yield
        finally:
            modules.put_back()
            _CALLER_THREADS.pop()
            _PYRO_STACK[:] = outer_handlers
            _DIM_ALLOCATOR._stack, _ENUM_ALLOCATOR.__dict__ = outer_plates, outer_enumeration
            torch.set_default_dtype(outer_dtype)
            torch.set_num_threads(outer_threads)
            set_rng_state(rng_state)
            if cuda_state is not None:
                torch.cuda.set_rng_state_all(cuda_state)
