"""Pictures with labels: scikit-learn's digits, and MNIST and Fashion-MNIST, downloaded once or from a file.

All grey levels are in [0, 1], and all arrays float32, in which networks are trained.
"""

import gzip
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

# Where the digits of scikit-learn are cut: its first 1500 pictures train, the last 297 test. Other writers wrote these.
NUM_TRAIN_DIGITS = 1500
# Where the four files of a set lie, and their MD5 sums, as torchvision 0.20 has them.
MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
FASHION_MNIST_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
MNIST_MD5 = (
    "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "d53e105ee54ea40749a09fcbcd1e9432",
    "9fb629c4189551a2d022fa330f9573f3",
    "ec29112dd5afa0611ce80d1b7f02629c",
)
FASHION_MNIST_MD5 = (
    "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "25c81989df183df01b3e8a0aad5dffbe",
    "bef4ecab320f06d8554ea6380940ec79",
    "bb300cfdad3c16e7a12a480ee83cd310",
)


class Images(NamedTuple):
    """Pictures for training and for testing, with what they show.

    Attributes
    ----------
    train, test
        Grey levels in [0, 1], 1 being ink, shape (pictures, height, width), float32.
    train_labels, test_labels
        Class of each picture, from 0, shape (pictures,), float32.
    """

    train: torch.Tensor
    train_labels: torch.Tensor
    test: torch.Tensor
    test_labels: torch.Tensor

    def binarised(self, seed: int | None = None) -> "Images":
        """Turn grey levels into zeros and ones.

        Parameters
        ----------
        seed
            None: a pixel is one above the middle. A number: a pixel is one with its grey level as probability, drawn
            once from this seed ("static" binarisation; Salakhutdinov & Murray 2008). The ``dynamic`` setting of the
            models draws anew at each step instead.
        """
        if seed is None:
            return self._replace(train=(self.train > 0.5).float(), test=(self.test > 0.5).float())
        generator = torch.Generator().manual_seed(seed)
        return self._replace(
            train=torch.bernoulli(self.train, generator=generator), test=torch.bernoulli(self.test, generator=generator)
        )


def digits() -> Images:
    """Load the 1797 handwritten digits of scikit-learn, 8 x 8 pixels of 17 grey levels (Alpaydin & Kaynak 1998)."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    grey = torch.from_numpy(bunch.images.astype(np.float32) / 16)
    labels = torch.from_numpy(bunch.target.astype(np.float32))
    cut = NUM_TRAIN_DIGITS
    return Images(grey[:cut], labels[:cut], grey[cut:], labels[cut:])


def mnist(path: str | Path | None = None) -> Images:
    """Load 60 000 + 10 000 handwritten digits of 28 x 28 pixels (LeCun et al. 1998).

    Parameters
    ----------
    path
        A ``.npz`` file with ``train_images``, ``train_labels``, ``test_images``, ``test_labels`` (integers to 255), or
        a folder with the four ``.gz`` files of the original. By default they are downloaded, checked, and kept in the
        cache of the user.

    Raises
    ------
    ModuleNotFoundError
        The download needs pooch (extra ``examples``).
    ValueError
        The file is not such a set, or the download is not the file that it should be.
    """
    return _load(path, "mnist", MNIST_URL, MNIST_MD5)


def fashion_mnist(path: str | Path | None = None) -> Images:
    """Load 60 000 + 10 000 pictures of clothes in ten classes, 28 x 28 pixels (Xiao, Rasul & Vollgraf 2017).

    Parameters and errors are those of `mnist`.
    """
    return _load(path, "fashion_mnist", FASHION_MNIST_URL, FASHION_MNIST_MD5)


def _load(path: str | Path | None, name: str, url: str, md5: tuple[str, ...]) -> Images:
    if path is None:
        return _from_idx(_download(name, url, md5))
    path = Path(path)
    if path.is_dir():
        return _from_idx([path / file for file in FILES])
    if not path.is_file():
        raise FileNotFoundError(f"path: there is no file or folder {path}; leave path out to download the pictures.")
    with np.load(path) as file:
        names = ("train_images", "train_labels", "test_images", "test_labels")
        missing = [n for n in names if n not in file]
        if missing:
            raise ValueError(f"path: {path} lacks {', '.join(missing)}; it has {', '.join(file)}.")
        return _images([file[n] for n in names], str(path))


def _download(name: str, url: str, md5: tuple[str, ...]) -> list[Path]:
    """Fetch the four files unless the cache of the user has them, and compare their sums."""
    try:
        import pooch
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"Downloading {name} needs pooch, which is not installed: pip install 'ppl-verdict[examples]'; "
            "or give the path of a file that you have."
        ) from error
    folder = pooch.os_cache("ppl_models") / name
    return [
        Path(pooch.retrieve(f"{url}{file}", known_hash=f"md5:{hash_}", fname=file, path=folder))
        for file, hash_ in zip(FILES, md5, strict=True)
    ]


def _from_idx(paths: list[Path]) -> Images:
    return _images([_read_idx(path) for path in paths], str(paths[0].parent))


def _read_idx(path: Path) -> np.ndarray:
    """Read bytes in the IDX format: two zeros, the type (8: bytes), the number of dims, the dims, big-endian."""
    with gzip.open(path) as file:
        content = file.read()
    zeros, kind, num_dims = struct.unpack(">HBB", content[:4])
    start = 4 + 4 * num_dims
    shape = struct.unpack(f">{num_dims}I", content[4:start])
    values = np.frombuffer(content, dtype=np.uint8, offset=start)
    if zeros or kind != 8 or len(values) != int(np.prod(shape)):
        raise ValueError(f"path: {path} is not an IDX file of bytes, or is cut short.")
    return values.reshape(shape)


def _images(arrays: list[np.ndarray], source: str) -> Images:
    """Scale bytes to [0, 1]."""
    for images, labels in (arrays[:2], arrays[2:]):
        if images.ndim != 3 or images.dtype != np.uint8 or labels.shape != images.shape[:1]:
            raise ValueError(
                f"path: expected bytes (pictures, height, width) and a label each in {source}, "
                f"got {images.dtype} {images.shape} and labels {labels.shape}."
            )
    train, train_labels, test, test_labels = (torch.from_numpy(a.astype(np.float32)) for a in arrays)
    return Images(train / 255, train_labels, test / 255, test_labels)
