"""Graphs on another device. Where there is no GPU, torch's `meta` device stands in: it refuses to mix devices, too."""

import numpy as np
import pytest
import torch

from inference import AutoVI
from inference.density import Density
from inference.devices import check_device, moved
from inference.errors import InputError
from inference.isolation import isolated
from inference.sites import read_sites
from inference.validate import prepare_data
from tests.zoo import CASES

META = torch.device("meta")
# `correlated` asks which elements a mask holds, which a tensor without numbers cannot tell.
RECORDED = [name for name, case in CASES.items() if case.recorded and name != "correlated"]


@pytest.fixture(autouse=True)
def own_state():
    with isolated(seed=1):
        yield


def density_of(name):
    return Density(read_sites(CASES[name].model, prepare_data(CASES[name].model, CASES[name].data)))


@pytest.mark.parametrize("name", RECORDED)
def test_everything_a_graph_holds_and_makes_is_moved(name):
    density = density_of(name)
    before = {key: buffer.device for key, buffer in density.graph.named_buffers()}
    gradient, value = moved(density.graph, META)(torch.zeros(density.dim, device=META))
    assert (gradient.device, value.device) == (META, META)
    assert gradient.shape == (density.dim,)
    assert {key: buffer.device for key, buffer in density.graph.named_buffers()} == before


def test_control_a_graph_that_stays_cannot_run_there():
    density = density_of("schools")
    with pytest.raises(RuntimeError, match="device"):
        density.graph(torch.zeros(density.dim, device=META))


def test_a_device_that_fails_is_not_used():
    density = density_of("schools")
    density.move(META)  # has no numbers to compare
    assert "run on the CPU" in density.reason
    assert density.backend == "graph"
    assert np.isfinite(density.grad(np.zeros((2, density.dim)))[1]).all()


@pytest.mark.parametrize("name", ["cuda:99", "tpu", "meta", 3])
def test_devices_that_are_not_there_are_refused(name):
    with pytest.raises(InputError, match="device: "):
        AutoVI(device=name)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
def test_batches_on_the_gpu_give_the_numbers_of_the_cpu():
    density = density_of("mixture_vectorised")
    points = np.random.default_rng(0).uniform(-1, 1, size=(50, density.dim))
    values, gradients = density.grad(points)
    density.move(check_device("cuda"))
    assert density.backend == "graph on cuda"
    np.testing.assert_allclose(density.grad(points)[0], values, rtol=1e-9)
    np.testing.assert_allclose(density.grad(points)[1], gradients, rtol=1e-7, atol=1e-9)
