import os

os.environ.setdefault("MPLBACKEND", "Agg")  # before anything imports matplotlib: the tests have no screen

import signal
from pathlib import Path

import pyro
import pytest
import torch

from ppl_models.simulation import own_stream

torch.set_num_threads(1)  # the suite runs one worker per core


@pytest.fixture(scope="session")
def shared() -> Path:
    """The reference posteriors and real data sets that live beside the repository, not in it."""
    path = Path(__file__).resolve().parents[2] / "shared"
    if not path.is_dir():
        pytest.skip(f"the reference data are absent: no folder {path}")
    return path


@pytest.fixture
def heard_interrupts():
    """Let Ctrl-C be heard: a shell that starts the tests in the background has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def restore_dtype():
    """Put the default dtype back, for tests that change it."""
    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def direct_pyro(restore_dtype):
    """Run models without `fit`: in float64, with a random stream and a parameter store of their own."""
    torch.set_default_dtype(torch.float64)
    with pyro.get_param_store().scope(), own_stream(3):
        yield
