"""The only place that touches Pyro's and torch's global state."""

from collections.abc import Iterator
from contextlib import contextmanager

import pyro
import torch
from pyro.poutine.runtime import _PYRO_STACK
from pyro.util import get_rng_state, set_rng_state

from inference.errors import InputError

MAX_SEED = 2**32 - 1  # numpy takes no larger one


@contextmanager
def isolated(seed: int, *, dtype: torch.dtype = torch.float64, num_threads: int = 1) -> Iterator[None]:
    """Run a block with its own parameter store, random streams, dtype, validation and threads.

    Everything is put back on the way out, also after an exception: the caller's Pyro parameter store, effect
    handlers, torch (CPU and GPU), numpy and Python random streams, default dtype, grad mode, validation, thread count.

    Parameters
    ----------
    seed
        From 0 to 2**32 - 1. Seeds all random streams inside the block, so that equal seeds give equal numbers.
    dtype
        Default floating dtype inside the block.
    num_threads
        Threads of torch inside the block. One, because torch splits small operations over threads at a loss.

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
    rng_state = get_rng_state()
    cuda_state = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    outer_dtype, outer_threads = torch.get_default_dtype(), torch.get_num_threads()
    outer_handlers, _PYRO_STACK[:] = list(_PYRO_STACK), []
    try:
        torch.set_default_dtype(dtype)
        torch.set_num_threads(num_threads)
        pyro.set_rng_seed(seed)
        with (
            pyro.get_param_store().scope(),
            pyro.validation_enabled(True),
            torch.inference_mode(mode=False),
            torch.enable_grad(),
        ):
            yield
    finally:
        _PYRO_STACK[:] = outer_handlers
        torch.set_default_dtype(outer_dtype)
        torch.set_num_threads(outer_threads)
        set_rng_state(rng_state)
        if cuda_state is not None:
            torch.cuda.set_rng_state_all(cuda_state)
