"""Bad input: one sentence that names the argument or site, says what came and what to do; never a number."""

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from inference import InputError, fit
from tests.awkward_models import (
    ENGINES,
    Y,
    bounded_latent,
    coins,
    colours,
    counts,
    latent_of_wrong_length,
    no_latent,
    no_sample,
    noisy,
    normal,
    only_discrete,
    out_of_reach,
    poisson_latent,
    raises,
    read,
    regression,
    simplexes,
    subsampled,
    three_rows,
    with_param,
)


@dataclass(frozen=True)
class Bad:
    """A request, what its refusal has to say, and the same request mended."""

    model: Any
    data: Any
    says: list[str]
    mended: dict[str, Any] | None = None
    mended_model: Any = None
    engines: tuple[str, ...] = field(default=tuple(ENGINES))


BAD = {
    "not a mapping": Bad(normal, [Y], ["data: expected one mapping from argument names", "got list"], {"y": Y}),
    "missing": Bad(normal, {"sigma": 1.0}, ["the model needs y", "takes y, sigma", "was given sigma"], {"y": Y}),
    "nothing given": Bad(normal, {}, ["the model needs y", "was given nothing"], {"y": Y}),
    "misspelt": Bad(
        normal, {"y": Y, "sigm": 1.0}, ["no argument 'sigm'", "takes y, sigma", "Did you mean 'sigma'?"], {"y": Y}
    ),
    "nothing alike": Bad(normal, {"y": Y, "q": 1.0}, ["no argument 'q'; it takes y, sigma.$"], {"y": Y}),
    "positional only": Bad(
        lambda y, /: normal(y),
        {"y": Y},
        ["argument 'y' is positional-only", "drop the '/'"],
        {"y": Y},
        lambda y: normal(y),
    ),
    "nan": Bad(normal, {"y": [1.0, np.nan, np.inf]}, [r"data\['y'\]: 2 of 3", r"first \(NaN\) at index 1", "impute"]),
    "infinite": Bad(
        normal, {"y": [1.0, -np.inf]}, [r"data\['y'\]: 1 of 2", r"first \(infinite\) at index 1", "impute"]
    ),
    "nan in a matrix": Bad(
        regression, {"x": [[1.0, 2.0], [3.0, np.nan]], "y": [1.0, 2.0]}, [r"data\['x'\]: 1 of 4", r"at index \(1, 1\)"]
    ),
    "nan in a tensor": Bad(normal, {"y": torch.tensor([torch.nan, 1.0])}, [r"data\['y'\]: 1 of 2", "at index 0"]),
    "nan in a column": Bad(normal, {"y": pd.Series([1, None], dtype="Int64")}, [r"data\['y'\]: 1 of 2", "at index 1"]),
    "nan in a list of tensors": Bad(
        normal, {"y": [torch.ones(2), torch.tensor([1.0, torch.nan])]}, [r"data\['y'\]\[1\]: 1 of 2", "at index 1"]
    ),
    "nan setting": Bad(
        normal, {"y": Y, "sigma": float("nan")}, [r"data\['sigma'\]: 1 of 1 .* NaN", "remove or impute"]
    ),
    "nan numpy scalar": Bad(normal, {"y": Y, "sigma": np.float32("nan")}, [r"data\['sigma'\]: 1 of 1 .* NaN"]),
    "masked array": Bad(
        normal,
        {"y": np.ma.masked_array([1.0, 1e6, 3.0], mask=[0, 1, 0])},
        [r"data\['y'\]: expected no gaps", "1 of 3 values masked", "remove or impute"],
        {"y": np.ma.masked_array([1.0, 2.0], mask=[0, 0])},
    ),
    "objects": Bad(
        normal, {"y": np.array([1.0, None])}, [r"data\['y'\]: expected numbers", "array of object", "0, 1, ..."]
    ),
    "text": Bad(normal, {"y": np.array(["a", "b"])}, [r"data\['y'\]: expected numbers", "array of <U1"]),
    "text column": Bad(
        normal, {"y": pd.Series(["a", "b"])}, [r"data\['y'\]: expected numbers", "code categories as 0"]
    ),
    "categories": Bad(
        normal,
        {"y": pd.Series(["a", "b"], dtype="category")},
        [r"data\['y'\]: expected numbers", "code categories as 0"],
        {"y": pd.Series(["a", "b"], dtype="category").cat.codes},
    ),
    "dates": Bad(
        normal, {"y": pd.Series(pd.to_datetime(["2020-01-01"]))}, [r"data\['y'\]: expected numbers", "datetime64"]
    ),
    "number and text": Bad(normal, {"y": [1.0, "b"]}, [r"data\['y'\]: expected numbers"]),
    "list of text": Bad(normal, {"y": ["a", "b"]}, ["site 'obs': obs must be a tensor", "got list"]),
    "ragged": Bad(normal, {"y": [[1.0], [1.0, 2.0]]}, [r"data\['y'\]: expected nested lists of equal lengths"]),
    "nothing at all": Bad(normal, {"y": np.zeros(0)}, ["the function fails on the data", r"y \(0,\)"]),
    "text for a model": Bad("normal", {"y": Y}, ["model: expected a Pyro function or a Model value", "got str"]),
    "built-in function": Bad(dict, {"y": Y}, ["model: expected a Pyro function with named arguments", "dict"]),
    "no sample": Bad(no_sample, {"y": Y}, ["no pyro.sample statement", "not a Pyro model"], {"y": Y}, normal),
    "no latent": Bad(no_latent, {"y": Y}, ["no continuous latent site", "pyro.sample without obs"], {"y": Y}, normal),
    "only discrete": Bad(only_discrete, {"y": Y}, ["no continuous latent site"], {"y": Y}, bounded_latent),
    "raises": Bad(raises, {"y": Y}, ["the function fails on the data", "KeyError: 'tank'", r"y \(3,\)"]),
    "bad parameter": Bad(
        normal, {"y": Y, "sigma": -1.0}, ["fails on the data", "scale", "-1.0"], {"y": Y, "sigma": 1.0}
    ),
    "negative count": Bad(
        counts, {"y": [1, 2, -3]}, ["site 'obs': observed value -3 at index 2", "Poisson", "1 such"], {"y": [1, 2, 3]}
    ),
    "broken count": Bad(counts, {"y": [0.5, 1.5]}, ["site 'obs': observed value 0.5 at index 0", "2 such", "Correct"]),
    "no coin": Bad(
        coins, {"y": [0.0, 2.0]}, ["site 'obs': observed value 2.0 at index 1", "Bernoulli"], {"y": [0.0, 1.0]}
    ),
    "no colour": Bad(
        colours,
        {"y": [0, 1, 3]},
        ["site 'obs': observed value 3 at index 2", "Categorical", "bound=2"],
        {"y": [0, 1, 2]},
    ),
    "no simplex": Bad(
        simplexes,
        {"y": [[0.2, 0.2, 0.6], [0.5, 0.4, 0.4]]},
        ["site 'obs'", "at index 1", "Dirichlet"],
        {"y": [[0.2, 0.2, 0.6], [0.5, 0.4, 0.1]]},
    ),
    "column against a plate": Bad(
        three_rows,
        {"y": np.ones((3, 1))},
        ["site 'obs': expected .* shape .3,. inside plate 'row'", r"got \(3, 1\)", "reshape"],
        {"y": np.ones(3)},
    ),
    "too many rows": Bad(three_rows, {"y": np.ones(4)}, ["site 'obs'", r"\(3,\) inside plate 'row'", r"got \(4,\)"]),
    "matrix against a plate": Bad(
        normal, {"y": np.ones((3, 2))}, ["site 'obs': expected", r"\(3,\) inside plate 'row'", r"got \(3, 2\)"]
    ),
    "number for a column": Bad(three_rows, {"y": 1.0}, ["site 'obs': obs must be a tensor, got float"], {"y": Y}),
    "latent against a plate": Bad(
        latent_of_wrong_length,
        {"y": Y},
        ["hape mismatch inside plate", "row", "site mu", "3 vs 2", "to_event"],
        {"y": Y, "size": 3},
    ),
    "matrix of wrong width": Bad(regression, {"x": [1.0, 2.0], "y": [1.0, 2.0]}, ["fails on the data", r"x \(2,\)"]),
    "poisson latent": Bad(
        poisson_latent,
        {"y": Y},
        ["site 'k'", "cannot be enumerated|no automatic guide", "sum it out by hand"],
        {"y": Y},
        bounded_latent,
    ),
    "subsampled": Bad(
        subsampled,
        {"y": Y},
        ["plate 'row': subsampling .2 of 3.", "remove subsample_size, or use SVI"],
        {"y": Y, "size": 3},
        engines=("nuts", "auto"),
    ),
    "random numbers": Bad(
        noisy,
        {"y": Y},
        ["model: its density is another one at every evaluation", "torch.randn", "or use SVI"],
        {"y": Y},
        normal,
        engines=("nuts", "auto"),
    ),
    "pyro.param": Bad(
        with_param,
        {"y": Y},
        ["param 'width'", "no prior", "pyro.sample, or use SVI"],
        {"y": Y},
        normal,
        engines=("nuts", "auto"),
    ),
    "no finite start": Bad(
        out_of_reach,
        {"y": Y},
        ["site 'obs': no finite starting point in 100 tries", "-inf at value", "Check"],
        {"y": Y, "shift": -10.0},
    ),
}


@pytest.mark.parametrize(("name", "engine"), [(name, engine) for name, bad in BAD.items() for engine in bad.engines])
def test_bad_input_is_refused(name, engine):
    bad = BAD[name]
    with pytest.raises(InputError) as refusal:
        fit(bad.model, bad.data, ENGINES[engine])
    message = str(refusal.value)
    assert "\n" not in message
    for part in bad.says:
        assert re.search(part, message), f"{part!r} not in: {message}"


@pytest.mark.parametrize("name", [name for name, bad in BAD.items() if bad.mended])
def test_the_same_mended_is_accepted(name):
    bad = BAD[name]
    sites = read(bad.mended_model or bad.model, bad.mended)
    assert sites.latent
    assert "obs" in sites.observed
