"""Real sequences: typed in here, in a file the user has, or bundled with statsmodels (extra ``examples``)."""

import json
import string
from pathlib import Path
from typing import Any

import numpy as np
import torch

# Earthquakes of magnitude 7 or more in each year from 1900 to 2006 (US Geological Survey, as in Zucchini, MacDonald &
# Langrock 2016, "Hidden Markov Models for Time Series", table 1.1).
EARTHQUAKES = [
    *(13, 14, 8, 10, 16, 26, 32, 27, 18, 32, 36, 24, 22, 23, 22, 18, 25, 21, 21, 14, 8, 11, 14, 23, 18, 17, 19, 20),
    *(22, 19, 13, 26, 13, 14, 22, 24, 21, 22, 26, 21, 23, 24, 27, 41, 31, 27, 35, 26, 28, 36, 39, 21, 17, 22, 17, 19),
    *(15, 34, 10, 15, 22, 18, 15, 20, 15, 22, 19, 16, 30, 27, 29, 23, 20, 16, 21, 21, 25, 16, 18, 15, 18, 14, 10, 15),
    *(8, 15, 6, 11, 8, 7, 18, 16, 13, 12, 13, 20, 15, 16, 12, 18, 15, 16, 13, 15, 16, 11, 11),
]
# Abraham Lincoln at Gettysburg, 19 November 1863 (the Bliss copy).
GETTYSBURG = """
Four score and seven years ago our fathers brought forth on this continent, a new nation, conceived in Liberty, and
dedicated to the proposition that all men are created equal.
Now we are engaged in a great civil war, testing whether that nation, or any nation so conceived and so dedicated, can
long endure. We are met on a great battle-field of that war. We have come to dedicate a portion of that field, as a
final resting place for those who here gave their lives that that nation might live. It is altogether fitting and proper
that we should do this.
But, in a larger sense, we can not dedicate -- we can not consecrate -- we can not hallow -- this ground. The brave men,
living and dead, who struggled here, have consecrated it, far above our poor power to add or detract. The world will
little note, nor long remember what we say here, but it can never forget what they did here. It is for us the living,
rather, to be dedicated here to the unfinished work which they who fought here have thus far so nobly advanced. It is
rather for us to be here dedicated to the great task remaining before us -- that from these honored dead we take
increased devotion to that cause for which they gave the last full measure of devotion -- that we here highly resolve
that these dead shall not have died in vain -- that this nation, under God, shall have a new birth of freedom -- and
that government of the people, by the people, for the people, shall not perish from the earth.
"""
# The piano: MIDI pitches 21 to 108.
LOWEST_PITCH, NUM_PITCHES = 21, 88


def earthquakes() -> torch.Tensor:
    """Give the number of major earthquakes in each of 107 years from 1900."""
    return torch.tensor(EARTHQUAKES, dtype=torch.float64)


def gettysburg_letters() -> tuple[torch.Tensor, list[str]]:
    """Give the letters of the Gettysburg Address as codes 0 to 26, with their names; 0 is whatever parts words."""
    words = "".join(c if c in string.ascii_lowercase else " " for c in GETTYSBURG.lower()).split()
    categories = [" ", *string.ascii_lowercase]
    return torch.tensor([float(categories.index(c)) for c in " ".join(words)], dtype=torch.float64), categories


def jsb_chorales(path: str | Path, part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Read chorales by J. S. Bach, each step a quarter note, each feature a key of the piano (1: sounding).

    Parameters
    ----------
    path
        JSON file ``{"train": [...], "valid": [...], "test": [...]}`` of lists of sequences of lists of MIDI pitches
        (Boulanger-Lewandowski et al. 2012; github.com/czhuang/JSB-Chorales-dataset).
    part
        One of these parts.

    Returns
    -------
    tuple
        Padded sequences (sequences, steps, 88), float64, and their lengths (sequences,), int64.

    Raises
    ------
    ValueError
        There is no such part, or a pitch is not on the piano.
    """
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    if part not in content:
        raise ValueError(f"part: expected one of {', '.join(content)}, got '{part}'.")
    lengths = torch.tensor([len(sequence) for sequence in content[part]])
    x = torch.zeros(len(lengths), int(lengths.max()), NUM_PITCHES, dtype=torch.float64)
    for i, sequence in enumerate(content[part]):
        for t, pitches in enumerate(sequence):
            keys = [int(pitch) - LOWEST_PITCH for pitch in pitches]
            if any(not 0 <= key < NUM_PITCHES for key in keys):
                raise ValueError(f"path: sequence {i}, step {t} has a pitch outside 21 to 108: {pitches}.")
            x[i, t, keys] = 1.0
    return x, lengths


def nile() -> torch.Tensor:
    """Give the volume of the Nile at Aswan in each of 100 years from 1871, in 10^8 m^3 (Cobb 1978)."""
    return _series(_table("nile")["volume"])


def log_gdp() -> torch.Tensor:
    """Give 100 times the logarithm of the real gross domestic product of the USA, 1959-2009 (203 quarters)."""
    return 100 * _series(_table("macrodata")["realgdp"]).log()


def inflation() -> torch.Tensor:
    """Give the inflation of consumer prices in the USA, % a year, 1959-2009 (202 quarters)."""
    return _series(_table("macrodata")["infl"])[1:]


def inflation_and_unemployment() -> torch.Tensor:
    """Give inflation, unemployment and the interest on treasury bills, %, USA 1959-2009: (202 quarters, 3)."""
    table = _table("macrodata")
    return torch.stack([_series(table[name])[1:] for name in ("infl", "unemp", "tbilrate")], -1)


def interest() -> torch.Tensor:
    """Give the interest on three-month treasury bills in the USA, % a year, 1959-2009 (202 quarters)."""
    return _series(_table("macrodata")["tbilrate"])[1:]


def unemployment() -> torch.Tensor:
    """Give the unemployment in the USA, %, 1959-2009 (202 quarters)."""
    return _series(_table("macrodata")["unemp"])[1:]


def sunspots() -> torch.Tensor:
    """Give the square roots of the yearly numbers of sunspots, 1700-2008 (309 years): their sd varies less."""
    return _series(_table("sunspots")["SUNACTIVITY"]).sqrt()


def warm_months() -> torch.Tensor:
    """Say which months of the years 1950-2010 the sea off Peru was warmer than in the median year: (61, 12), 0 or 1."""
    months = _table("elnino").drop(columns="YEAR").to_numpy(dtype=np.float64)
    return torch.from_numpy((months > np.median(months, axis=0)).astype(np.float64))


def _table(name: str) -> Any:
    """Load a table of statsmodels.

    Raises
    ------
    ModuleNotFoundError
        statsmodels is not installed.
    """
    try:
        from statsmodels import datasets
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"The data '{name}' come with statsmodels, which is not installed: pip install 'ppl-verdict[examples]'; "
            "or give data of your own."
        ) from error
    return getattr(datasets, name).load_pandas().data


def _series(column: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(column, dtype=np.float64))
