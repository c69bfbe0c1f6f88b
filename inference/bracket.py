"""Bounds of log p(x) from both sides, for some rows: annealed importance sampling forth and back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch

from inference.annealing import Annealing
from inference.errors import InputError
from inference.fit import Fit
from inference.latent_rows import LatentRows, Part, Rows, latent_rows
from inference.nuts import check_count
from inference.row_chains import row_chains

NUM_WARMUP, NUM_DRAWS, CHAINS = 300, 500, 4
RHAT = 1.05  # chains of so few draws; beyond it their draws are not the posterior's


@dataclass(frozen=True, eq=False)
class Bracket:
    """Stochastic bounds of log p(x), in nats.

    Attributes
    ----------
    rows
        Row numbers, (n,).
    lower, lower_se, upper, upper_se
        By annealing from the guide to the posterior, and back, (n,); with Monte Carlo standard errors.
    exact
        Whether the way back began at exact draws (simulated rows): then the upper bound holds in expectation. Else it
        began at draws of NUTS, and holds as far as its chains had arrived.
    rhat
        Of those chains, (n,); NaN where there are none.
    """

    rows: np.ndarray
    lower: np.ndarray = field(repr=False)
    lower_se: np.ndarray = field(repr=False)
    upper: np.ndarray = field(repr=False)
    upper_se: np.ndarray = field(repr=False)
    exact: bool
    rhat: np.ndarray = field(repr=False)

    @property
    def gap(self) -> float:
        """Mean of upper minus lower bound: how far either may be off on average."""
        return float(np.mean(self.upper - self.lower))

    @property
    def gap_se(self) -> float:
        """Monte Carlo standard error of ``gap``."""
        return float(np.sqrt(np.sum(self.lower_se**2 + self.upper_se**2)) / len(self.rows))

    def __str__(self) -> str:
        errors = [np.sqrt(np.sum(se**2)) / len(self.rows) for se in (self.lower_se, self.upper_se)]
        start = "exact draws of simulated rows" if self.exact else "draws of NUTS"
        lines = [
            f"log p(x) between {self.lower.mean():.3f} +- {errors[0]:.3f} and {self.upper.mean():.3f} +- "
            f"{errors[1]:.3f} nats per row ({len(self.rows)} rows, annealed importance sampling from the guide, and "
            f"back from {start})"
        ]
        stuck = self.rhat > RHAT
        if stuck.any():
            lines.append(
                f"R-hat is above {RHAT} in rows {', '.join(map(str, self.rows[stuck]))}: their upper bounds may fail."
            )
        return "\n".join(lines)

    def to_frame(self) -> pd.DataFrame:
        """Give a row for each row."""
        names = ("lower", "lower_se", "upper", "upper_se", "rhat")
        return pd.DataFrame({name: getattr(self, name) for name in names}, index=pd.Index(self.rows, name="row"))


def bracket(
    fit: Fit,
    data: Mapping[str, Any] | None = None,
    *,
    rows: int | Rows = 8,
    num_temperatures: int = 200,
    num_chains: int = 16,
    simulate: bool = False,
    seed: int = 0,
) -> Bracket:
    """Bound log p(x) of some rows from below and from above.

    Annealed importance sampling (Neal 2001) goes from a Gaussian with the moments of the guide to the posterior by
    Hamiltonian transitions, all rows and chains side by side; the log of the mean weight is a lower bound in
    expectation. The way back from a draw of the posterior gives an upper bound (bidirectional Monte Carlo, Grosse,
    Ghahramani & Adams 2015; Wu et al. 2017). Where importance sampling from the guide is between them, it is right.

    Parameters
    ----------
    fit, data
        As for `inference.log_marginal`.
    rows
        Row numbers, or how many, evenly spread.
    num_temperatures, num_chains
        Steps on the way, and chains for each row. More of either narrow the bracket.
    simulate
        Replace the rows by simulated ones, of whose latents one exact posterior draw is known. This tells how good the
        estimates are on data like these, without any Markov chain to be believed.
    seed
        Of everything random.

    Raises
    ------
    InputError
        As `inference.log_marginal`; with ``simulate``, observations that are no argument of their site's name.

    Examples
    --------
    >>> print(bracket(vae_fit, {"x": test_images}, rows=20))
    """
    check_count("num_temperatures", num_temperatures, least=2)
    check_count("num_chains", num_chains, least=2)
    with latent_rows(fit, data, seed=seed) as found:
        index = found.chosen(rows)
        own, exact = _simulated(found, index) if simulate else (found.part(index), None)
        path = Annealing(found, own, num_temperatures=num_temperatures, num_chains=num_chains, seed=seed)
        lower, lower_se = path.lower()
        rhat = np.full(len(index), np.nan)
        if exact is None:
            points, rhat = _by_chains(found, index, num_chains, seed)
        else:
            points = exact.expand(num_chains, -1, -1)
        upper, upper_se = path.upper(points)
    return Bracket(index, lower, lower_se, upper, upper_se, simulate, rhat)


def _by_chains(found: LatentRows, index: np.ndarray, num: int, seed: int) -> tuple[torch.Tensor, np.ndarray]:
    """Draws of NUTS, evenly spread over its chains, (num, n, d), and R-hats (n,)."""
    draws, rhats = [], []
    for row in index:
        chains = row_chains(
            found,
            found.part([row]),
            num_chains=CHAINS,
            num_warmup=NUM_WARMUP,
            num_samples=max(NUM_DRAWS, num),
            seed=seed,
        )
        draws.append(chains.pooled[np.linspace(0, len(chains.pooled) - 1, num).astype(int)])
        rhats.append(chains.rhat)
    return torch.as_tensor(np.stack(draws, axis=1), dtype=torch.get_default_dtype()), np.array(rhats)


def _simulated(found: LatentRows, index: np.ndarray) -> tuple[Part, torch.Tensor]:
    """Simulate rows: the rows with other data, and the latents (1, n, d) that they came from."""
    data = dict(found.part(index).data)
    points, distributions = found.simulate(data, 1)
    for name, distribution in distributions.items():
        value = distribution.sample()
        given = data.get(name)
        if not isinstance(given, torch.Tensor) or given.shape != value.shape:
            raise InputError(
                f"simulate: the observed site '{name}' has no argument of its name and shape {tuple(value.shape)} to "
                "put simulated values into; give the model one, or use simulate=False."
            )
        data[name] = value.to(given.dtype)
    return Part(index, data), points
