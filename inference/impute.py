"""Missing entries of rows: their posterior under a trained latent-variable model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.special import softmax

from inference.errors import InputError
from inference.fit import Fit
from inference.latent_rows import LatentRows, Part, Rows, latent_rows
from inference.nuts import check_choice, check_count
from inference.row_chains import row_chains

METHODS = ("encoder", "weighted", "nuts")
# Draws that importance resampling chooses from, for each one that it keeps.
CHOICE = 20
NUM_CHAINS, NUM_WARMUP = 4, 300
ENDS = (0.05, 0.95)


@dataclass(frozen=True, eq=False)
class Imputation:
    """Posterior of the entries of some rows; observed entries are as they are, without spread. All (n, *shape).

    Attributes
    ----------
    site
        The observed site.
    rows
        Row numbers, (n,).
    missing
        Which entries were missing.
    mean, sd
        Posterior mean and sd of each entry.
    low, high
        5 % and 95 % quantiles of the entry itself (of binary entries they are 0 or 1).
    expected_low, expected_high
        5 % and 95 % quantiles, over the posterior of the latents, of its expected value: of a binary entry, of its
        probability.
    method, num_samples
        How the latents were drawn, and how often.
    """

    site: str
    rows: np.ndarray = field(repr=False)
    missing: np.ndarray = field(repr=False)
    mean: np.ndarray = field(repr=False)
    sd: np.ndarray = field(repr=False)
    low: np.ndarray = field(repr=False)
    high: np.ndarray = field(repr=False)
    expected_low: np.ndarray = field(repr=False)
    expected_high: np.ndarray = field(repr=False)
    method: str
    num_samples: int

    def __str__(self) -> str:
        num_rows = int(self.missing.reshape(len(self.rows), -1).any(axis=1).sum())
        if not num_rows:
            return f"No entry of '{self.site}' is missing in these {len(self.rows)} rows."
        by = {"encoder": "the encoder", "weighted": "the encoder, re-weighted", "nuts": "NUTS"}[self.method]
        sds = self.sd[self.missing]
        return (
            f"{self.missing.sum()} missing entries of '{self.site}' in {num_rows} of {len(self.rows)} rows, by "
            f"{self.num_samples} draws of {by}: sd {np.median(sds):.3g} in the median, at most {sds.max():.3g}."
        )

    def to_frame(self) -> pd.DataFrame:
        """Give a row for each missing entry."""
        where = np.argwhere(self.missing)
        names = ["row", *(f"{self.site}_dim_{i + 1}" for i in range(where.shape[1] - 1))]
        table = pd.DataFrame(where, columns=names)
        table["row"] = self.rows[table["row"]]
        for name in ("mean", "sd", "low", "high", "expected_low", "expected_high"):
            table[name] = getattr(self, name)[self.missing]
        return table


def impute(
    fit: Fit,
    data: Mapping[str, Any] | None = None,
    *,
    rows: int | Rows | None = None,
    method: str = "encoder",
    num_samples: int = 400,
    seed: int = 0,
) -> Imputation:
    """Give the posterior of missing entries (NaN) of the observed site, given the entries that are there.

    Latents are drawn given the observed entries, then the missing ones from the decoder. The model must leave missing
    entries out of its density (a mask), and name the argument by ``may_miss``.

    Parameters
    ----------
    fit, data
        As for `inference.log_marginal`.
    rows
        Row numbers, or how many, evenly spread; by default all.
    method
        ``"encoder"``: draws of the guide, as good as it is for rows with gaps; ``"weighted"``: the same, resampled by
        importance; ``"nuts"``: Markov chains for each row, the reference.
    num_samples
        Draws for each row.
    seed
        Of everything random.

    Raises
    ------
    InputError
        As `inference.log_marginal`; the argument with the gaps cannot be told.

    Examples
    --------
    >>> impute(vae_fit, {"x": images_with_nan}, rows=8, method="nuts").to_frame()
    """
    check_choice("method", method, METHODS)
    check_count("num_samples", num_samples, least=20)
    with latent_rows(fit, data, seed=seed) as found:
        index = found.chosen(found.num_rows if rows is None else rows)
        site, argument = _with_gaps(found)
        size = 1 if method == "nuts" else 50
        parts = [found.part(index[i : i + size]) for i in range(0, len(index), size)]
        pieces = [_filled(found, part, site, argument, method, num_samples, seed) for part in parts]
    return Imputation(site, index, *(np.concatenate(a) for a in zip(*pieces, strict=True)), method, num_samples)


def _with_gaps(found: LatentRows) -> tuple[str, str]:
    """Name the observed site, and the argument whose NaN are its missing entries."""
    site = next(iter(found.sites.observed))
    shape = found.sites.observed[site].shape
    floats = [n for n in found.arguments if found.sites.data[n].is_floating_point()]
    fitting = [n for n in floats if found.sites.data[n].numel() == np.prod(shape)]
    chosen = site if site in fitting else next(iter(fitting), None)
    if len(found.sites.observed) > 1 or chosen is None:
        raise InputError(
            f"model: expected one observed site and the argument that it observes, with NaN where entries are missing; "
            f"got sites {', '.join(found.sites.observed)} and arguments {', '.join(found.arguments)}."
        )
    return site, chosen


def _filled(
    found: LatentRows, part: Part, site: str, argument: str, method: str, num: int, seed: int
) -> tuple[np.ndarray, ...]:
    """Mask, mean, sd, quantiles of entries and of expected entries of some rows."""
    given = part.data[argument].double().numpy()
    points, discrete = _latents(found, part, method, num, seed)
    distribution = found.distributions(points, part.data, discrete)[site]
    with torch.no_grad():
        shape = (num, len(part), *found.sites.observed[site].shape[1:])
        expected = distribution.mean.reshape(shape).double().numpy()
        drawn = distribution.sample().reshape(shape).double().numpy()
        noise = distribution.variance.reshape(shape).double().numpy()
    given = given.reshape(shape[1:])
    missing = np.isnan(given)
    sd = np.sqrt(expected.var(axis=0) + noise.mean(axis=0))
    found_values = [expected.mean(axis=0), sd, *np.quantile(drawn, ENDS, axis=0), *np.quantile(expected, ENDS, axis=0)]
    return missing, *(np.where(missing, v, 0.0 if v is sd else given) for v in found_values)


def _latents(
    found: LatentRows, part: Part, method: str, num: int, seed: int
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Draw latents (num, n, d), and the discrete sites that the guide samples."""
    if method == "nuts":
        chains = row_chains(
            found,
            part,
            num_chains=NUM_CHAINS,
            num_warmup=NUM_WARMUP,
            num_samples=max(num, NUM_WARMUP),
            seed=seed + int(part.index[0]),
        )
        chosen = np.linspace(0, len(chains.pooled) - 1, num).astype(int)
        return torch.as_tensor(chains.pooled[chosen][:, None], dtype=torch.get_default_dtype()), {}
    pieces = list(found.draws(part, num * (CHOICE if method == "weighted" else 1)))
    points = torch.cat([piece.points for piece in pieces])
    discrete = {n: torch.cat([p.values[n] for p in pieces]) for n in found.sites.discrete if n in pieces[0].values}
    if method == "encoder":
        return points, discrete
    weights = softmax(np.concatenate([piece.log_weight for piece in pieces]), axis=0)
    rng = np.random.default_rng(seed)
    pairs = [rng.choice(len(column), size=num, p=column) for column in weights.T]
    index = torch.as_tensor(np.stack(pairs, axis=1))
    column = torch.arange(len(part))
    return points[index, column], {name: value[index, column] for name, value in discrete.items()}
