"""Pictures: what is bundled, what is read from files, and downloads, from a server of our own."""

import gzip
import hashlib
import struct
import sys
import threading
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest
import torch

from ppl_models import images

MNIST = Path(__file__).resolve().parents[2] / "shared" / "data" / "mnist.npz"
GENERATOR = np.random.default_rng(0)
ARRAYS = [
    GENERATOR.integers(0, 256, (5, 4, 3), dtype=np.uint8),
    GENERATOR.integers(0, 10, 5, dtype=np.uint8),
    GENERATOR.integers(0, 256, (2, 4, 3), dtype=np.uint8),
    GENERATOR.integers(0, 10, 2, dtype=np.uint8),
]


def write_idx(folder):
    """The four files of a small set, and their MD5 sums."""
    sums = []
    for name, array in zip(images.FILES, ARRAYS, strict=True):
        header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
        content = gzip.compress(header + array.tobytes(), mtime=0)
        (folder / name).write_bytes(content)
        sums.append(hashlib.md5(content).hexdigest())
    return tuple(sums)


def assert_same(loaded):
    train, train_labels, test, test_labels = ARRAYS
    np.testing.assert_allclose(loaded.train.numpy(), train / 255, rtol=1e-6)
    np.testing.assert_allclose(loaded.test.numpy(), test / 255, rtol=1e-6)
    assert loaded.train_labels.tolist() == train_labels.tolist()
    assert loaded.test_labels.tolist() == test_labels.tolist()
    assert all(part.dtype == torch.float32 for part in loaded)


def test_digits_are_cut_where_they_are_said_to_be():
    digits = images.digits()
    assert digits.train.shape == (1500, 8, 8)
    assert digits.test.shape == (297, 8, 8)
    levels = torch.cat([digits.train, digits.test]).unique() * 16
    assert levels.tolist() == list(range(17))
    assert set(digits.test_labels.tolist()) == set(range(10))
    from sklearn.datasets import load_digits

    np.testing.assert_array_equal(digits.binarised().test.numpy(), load_digits().images[1500:] > 8)


def test_static_binarisation_has_the_grey_levels_as_probabilities():
    digits = images.digits()
    drawn = [digits.binarised(seed) for seed in range(200)]
    again, other = digits.binarised(0), digits.binarised(1)
    assert torch.equal(drawn[0].train, again.train)
    assert not torch.equal(again.train, other.train)
    share = torch.stack([d.test for d in drawn]).mean(0)
    error = (digits.test * (1 - digits.test) / 200).sqrt()
    assert ((share - digits.test).abs() <= 5.5 * error + 1e-7).all()


def test_pictures_from_a_folder_and_from_one_file(tmp_path):
    write_idx(tmp_path)
    assert_same(images.mnist(tmp_path))
    names = ("train_images", "train_labels", "test_images", "test_labels")
    np.savez(tmp_path / "set.npz", **dict(zip(names, ARRAYS, strict=True)))
    assert_same(images.mnist(str(tmp_path / "set.npz")))


def test_files_that_are_no_pictures_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file or folder .*absent.npz; leave path out to download"):
        images.mnist(tmp_path / "absent.npz")
    np.savez(tmp_path / "part.npz", train_images=ARRAYS[0])
    with pytest.raises(ValueError, match="part.npz lacks train_labels, test_images, test_labels; it has train_images"):
        images.mnist(tmp_path / "part.npz")
    names = ("train_images", "train_labels", "test_images", "test_labels")
    np.savez(tmp_path / "odd.npz", **dict(zip(names, [ARRAYS[0], ARRAYS[3], *ARRAYS[2:]], strict=True)))
    with pytest.raises(ValueError, match=r"expected bytes \(pictures, height, width\) and a label .* labels \(2,\)"):
        images.mnist(tmp_path / "odd.npz")
    write_idx(tmp_path)
    cut = gzip.compress(gzip.decompress((tmp_path / images.FILES[0]).read_bytes())[:-1])
    (tmp_path / images.FILES[0]).write_bytes(cut)
    with pytest.raises(ValueError, match="is not an IDX file of bytes, or is cut short"):
        images.mnist(tmp_path)


class Quiet(SimpleHTTPRequestHandler):
    """Serves files, and counts them."""

    served: list[str] = []

    def log_message(self, *_):
        self.served.append(self.path)


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "remote"
    folder.mkdir()
    sums = write_idx(folder)
    Quiet.served = []
    with HTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}/", sums
        running.shutdown()
        thread.join()


@pytest.mark.parametrize(("load", "name"), [(images.mnist, "MNIST"), (images.fashion_mnist, "FASHION_MNIST")])
def test_a_download_is_checked_and_kept(monkeypatch, tmp_path, server, load, name):
    pooch = pytest.importorskip("pooch")
    url, sums = server
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / project)
    pooch.get_logger().setLevel("ERROR")
    monkeypatch.setattr(images, f"{name}_URL", url)
    monkeypatch.setattr(images, f"{name}_MD5", (sums[1], *sums[1:]))  # of another file
    with pytest.raises(ValueError, match="does not match the known hash"):
        load()
    monkeypatch.setattr(images, f"{name}_MD5", sums)
    assert_same(load())
    before = len(Quiet.served)
    assert_same(load())
    assert len(Quiet.served) == before  # from the cache


def test_without_pooch_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(ModuleNotFoundError, match=r"Downloading mnist needs pooch.*ppl-verdict\[examples\].*path"):
        images.mnist()


@pytest.mark.skipif(not MNIST.exists(), reason=f"{MNIST} is not there")
def test_mnist_from_the_local_file():
    mnist = images.mnist(MNIST)
    assert mnist.train.shape == (60_000, 28, 28)
    assert mnist.test.shape == (10_000, 28, 28)
    assert abs(float(mnist.train.mean()) - 0.1307) < 1e-4  # as the literature normalises them
