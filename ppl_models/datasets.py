"""Small real data sets, all bundled with scikit-learn or typed in here: nothing is downloaded."""

from typing import Any, NamedTuple

import numpy as np
import torch

# scikit-learn is imported inside the loaders: it takes about a second, and most commands never load a data set.


class Table(NamedTuple):
    """A regression data set.

    Attributes
    ----------
    x
        Standardised covariates, shape (rows, covariates), float64.
    y
        Outcome, shape (rows,), float64.
    covariates
        Names of the columns of ``x``.
    """

    x: torch.Tensor
    y: torch.Tensor
    covariates: list[str]


def standardise(values: np.ndarray) -> np.ndarray:
    """Shift and scale each column to mean 0 and standard deviation 1."""
    return (values - values.mean(axis=0)) / values.std(axis=0)


def labels_if_same(given: Any, bundled: torch.Tensor, **labels: list[str]) -> dict[str, list]:
    """Give ``labels`` where ``given`` is the bundled array, else none: strangers' data must not bear our names."""
    given = np.asarray(given)
    # 1e-5: the same numbers after a round trip through float32.
    same = given.shape == tuple(bundled.shape) and np.allclose(given, bundled.numpy(), rtol=1e-5, atol=1e-5)
    return {plate: list(names) for plate, names in labels.items()} if same else {}


def diabetes() -> Table:
    """Load disease progression after one year in 442 diabetes patients, ten covariates (Efron et al. 2004).

    The outcome is standardised too. The six blood measurements are strongly correlated.
    """
    from sklearn.datasets import load_diabetes

    bunch = load_diabetes(scaled=False)
    # scikit-learn calls the blood measurements s1 to s6; these are the names its description gives.
    names = [*bunch.feature_names[:4], "tc", "ldl", "hdl", "tch", "ltg", "glu"]
    return _table(bunch.data, standardise(bunch.target), names)


def diabetes_by_sex() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Load body mass index, sex and disease progression of the 442 diabetes patients (Efron et al. 2004).

    The body mass index counts from 22 kg/m2, the middle of the range called healthy, in units of 5 kg/m2; its mean is
    0.9, not 0. Sex is 0 or 1; the source does not say which is which. Progression is standardised. Shapes (442,).
    """
    from sklearn.datasets import load_diabetes

    bunch = load_diabetes(scaled=False)
    column = {name: bunch.data[:, i] for i, name in enumerate(bunch.feature_names)}
    columns = ((column["bmi"] - 22) / 5, column["sex"] - 1, standardise(bunch.target))
    return tuple(torch.from_numpy(np.ascontiguousarray(values)) for values in columns)


def breast_cancer() -> Table:
    """Load tumours (1 malignant, 0 benign) and the means of ten cell measurements, 569 patients (Street et al. 1993).

    Of scikit-learn's thirty columns the ten means are kept. Radius, perimeter and area are nearly the same quantity.
    """
    from sklearn.datasets import load_breast_cancer

    bunch = load_breast_cancer()
    names = [str(name).removeprefix("mean ") for name in bunch.feature_names[:10]]
    return _table(bunch.data[:, :10], 1 - bunch.target, names)  # scikit-learn codes malignant as 0


def chin_ups() -> Table:
    """Load the chin-ups done by 20 men, with weight, waist and resting pulse (A. C. Linnerud's fitness club data).

    Genuine counts, but few, and more dispersed than a Poisson allows (variance about three times the mean).
    """
    from sklearn.datasets import load_linnerud

    bunch = load_linnerud()  # scikit-learn takes the exercises as inputs; here they are the outcome
    return _table(bunch.target, bunch.data[:, 0], [name.lower() for name in bunch.target_names])


def iris_petal_width() -> Table:
    """Load petal width (cm) of 150 irises of three species, with the three other measurements (Fisher 1936)."""
    from sklearn.datasets import load_iris

    measurements = load_iris().data
    return _table(measurements[:, :3], measurements[:, 3], ["sepal length", "sepal width", "petal length"])


def iris_petal_length() -> torch.Tensor:
    """Load petal length (cm) of 150 irises, rounded to 0.1: one species far below the two others (Fisher 1936)."""
    from sklearn.datasets import load_iris

    return torch.from_numpy(load_iris().data[:, 2].astype(np.float64))


def iris_measurements() -> torch.Tensor:
    """Load the four measurements (cm) of 150 irises of three species, rounded to 0.1, shape (150, 4) (Fisher 1936)."""
    from sklearn.datasets import load_iris

    return torch.from_numpy(load_iris().data.astype(np.float64))


def sepals() -> Table:
    """Load sepal width (cm) of 150 irises with standardised sepal length.

    Over all irises width falls with length; within each species it rises.
    """
    from sklearn.datasets import load_iris

    measurements = load_iris().data
    return _table(measurements[:, :1], measurements[:, 1], ["sepal length"])


def tumours() -> torch.Tensor:
    """Load mean radius and texture of the cells of 569 tumours, shape (569, 2) (Street et al. 1993)."""
    from sklearn.datasets import load_breast_cancer

    return torch.from_numpy(load_breast_cancer().data[:, :2].astype(np.float64))


def wine() -> torch.Tensor:
    """Load 13 measurements of 178 wines of three growers, standardised, shape (178, 13) (Forina et al. 1988)."""
    from sklearn.datasets import load_wine

    return torch.from_numpy(standardise(load_wine().data.astype(np.float64)))


def exercises() -> torch.Tensor:
    """Load chin-ups, sit-ups and jumps of 20 men, counts of shape (20, 3) (A. C. Linnerud's fitness club data)."""
    from sklearn.datasets import load_linnerud

    return torch.from_numpy(load_linnerud().data.astype(np.float64))


def digit_pixels() -> torch.Tensor:
    """Load the dark pixels (above 8 of 16) of the first 100 handwritten digits 0, 1 and 2, zeros and ones (100, 64)."""
    return _low_digits()[0][:100]


def more_digit_pixels() -> tuple[torch.Tensor, torch.Tensor]:
    """Load the next 100 such pictures, as in `digit_pixels`, and which digits they are (100,)."""
    pixels, labels = _low_digits()
    return pixels[100:200], labels[100:200]


def _low_digits() -> tuple[torch.Tensor, torch.Tensor]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    low = bunch.target < 3
    return torch.from_numpy((bunch.data[low] > 8).astype(np.float64)), torch.from_numpy(bunch.target[low])


def digit_rows() -> torch.Tensor:
    """Count the dark pixels of `digit_pixels` in each of the 8 columns of the image, shape (100, 8)."""
    return digit_pixels().reshape(-1, 8, 8).sum(1)


def _table(x: np.ndarray, y: np.ndarray, covariates: list[str]) -> Table:
    return Table(torch.from_numpy(standardise(x)), torch.from_numpy(np.asarray(y, dtype=np.float64)), covariates)
