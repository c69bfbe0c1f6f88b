"""The amortisation gap: what an encoder loses against the best distribution of its family, row by row."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from inference.fit import Fit
from inference.gaussian import MAX_FULL_RANK
from inference.latent_rows import Rows, latent_rows
from inference.nuts import check_choice, check_count
from inference.row_gaps import ELBO_DRAWS, RowPosterior, guide_family, row_gaps
from inference.text_table import format_table, wrap

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from inference.compare import Comparison

FAMILIES = ("auto", "mean_field", "full_rank")
RHAT = 1.05  # of so few draws; beyond it a row's chains have not agreed
# Columns of the printed table; gaps are differences of the others.
HEADINGS = {
    "log_p": "log p(x)",
    "log_p_is": "by IS",
    "best": "best ELBO",
    "encoder": "encoder's",
    "approximation_gap": "approximation",
    "amortisation_gap": "amortisation",
}


@dataclass(frozen=True, eq=False)
class Amortisation:
    """Gaps of an encoder for some rows, in nats. Print it.

    Attributes
    ----------
    table
        A row for each row; columns, with Monte Carlo standard errors ``<column>_se``:

        - ``log_p``: log p(x) by bridge sampling from the draws of NUTS; ``log_p_is``: by importance sampling from the
          encoder, whose weights have ``khat``;
        - ``encoder``: ELBO of the encoder; ``best``: of the best Gaussian of its family for this row (``settled``);
        - ``approximation_gap``: log p(x) - best ELBO; ``amortisation_gap``: best ELBO - encoder's ELBO;
        - ``mean_error``: largest error of the encoder's means, in posterior sds; ``sd_ratio_low`` and
          ``sd_ratio_high``: smallest and largest ratio of its sds to the posterior's;
        - ``rhat``, ``num_divergent``: of the chains.
    family
        Of the free Gaussians: ``"mean_field"`` or ``"full_rank"``.
    labels
        Names of a row's latents.
    posteriors
        Draws and Gaussians behind the table.
    remarks
        What else is worth knowing.
    """

    table: pd.DataFrame = field(repr=False)
    family: str
    labels: tuple[str, ...] = field(repr=False)
    posteriors: tuple[RowPosterior, ...] = field(repr=False)
    remarks: tuple[str, ...] = ()

    @property
    def rows(self) -> np.ndarray:
        """Row numbers, (n,)."""
        return self.table.index.to_numpy()

    @property
    def approximation_gap(self) -> np.ndarray:
        """Log p(x) minus the best ELBO of the family, (n,)."""
        return self.table["approximation_gap"].to_numpy()

    @property
    def amortisation_gap(self) -> np.ndarray:
        """Best ELBO of the family minus that of the encoder, (n,)."""
        return self.table["amortisation_gap"].to_numpy()

    def mean(self, column: str) -> tuple[float, float]:
        """Mean of a column over rows, and its Monte Carlo standard error."""
        return float(self.table[column].mean()), float(np.sqrt((self.table[f"{column}_se"] ** 2).sum())) / len(
            self.rows
        )

    @cached_property
    def comparison(self) -> "Comparison":
        """Compare encoder and free Gaussians with NUTS, latent by latent: quantities are ``row <number> <latent>``.

        Every row's draws are its own, so that correlations are those within rows.
        """
        from inference.compare import compare
        from inference.given import from_draws

        rng = np.random.default_rng(0)
        draws: dict[str, dict[str, np.ndarray]] = {"nuts": {}, "encoder": {}, "free": {}}
        for row, found in zip(self.rows, self.posteriors, strict=True):
            base = rng.standard_normal((ELBO_DRAWS, len(self.labels)))
            own = {"nuts": found.chains, "encoder": found.encoder[None], "free": found.free.transform(base)[None]}
            for name, values in own.items():
                for j, label in enumerate(self.labels):
                    draws[name][f"row {row} {label}"] = values[..., j]
        sources = {"nuts": "NUTS, row by row", "encoder": "the encoder", "free": "Gaussians fitted to single rows"}
        fits = {n: from_draws(values, source=sources[n], independent=n != "nuts") for n, values in draws.items()}
        return compare(fits, reference="nuts")

    def to_frame(self) -> pd.DataFrame:
        """Give the table."""
        return self.table.copy()

    def figures(self) -> dict[str, "Figure"]:
        """Draw the gaps, and a few rows' posteriors by NUTS with the Gaussians of encoder and free fit."""
        from inference.latent_plots import gap_figure, posterior_figure  # brings in matplotlib, which printing does not

        return {"gaps": gap_figure(self), "posteriors": posterior_figure(self)}

    @property
    def summary(self) -> str:
        """The gaps in a sentence."""
        (approximation, a_se), (amortisation, b_se) = self.mean("approximation_gap"), self.mean("amortisation_gap")
        family = "independent normals" if self.family == "mean_field" else "a Gaussian"
        return (
            f"Taking {family} for the posterior loses {approximation:z.2f} +- {a_se:.2f} nats per row (approximation "
            f"gap); one network for all rows in place of the best for each loses {amortisation:z.2f} +- {b_se:.2f} "
            "more (amortisation gap)."
        )

    def __str__(self) -> str:
        lines = []  # "z" in the formats of gaps: a zero has no sign
        for row, values in self.table.iterrows():
            cells = [f"{values[name]:z.2f} +- {values[f'{name}_se']:.2f}" for name in HEADINGS]
            ratios = f"{values['sd_ratio_low']:.2f} to {values['sd_ratio_high']:.2f}"
            lines.append([str(row), *cells, f"{values['mean_error']:.2f}", ratios])
        if len(lines) > 1:
            lines.append(["mean", *("{:z.2f} +- {:.2f}".format(*self.mean(name)) for name in HEADINGS), "", ""])
        table = format_table(["row", *HEADINGS.values(), "mean error (sd)", "sd ratios"], lines)
        paragraphs = [self.summary, *(f"Note: {remark}" for remark in self.remarks)]
        return "\n".join([table, *(line for text in paragraphs for line in wrap(text))])


def amortisation(
    fit: Fit,
    data: Mapping[str, Any] | None = None,
    *,
    rows: int | Rows = 8,
    family: str = "auto",
    num_warmup: int = 300,
    num_samples: int = 1000,
    num_chains: int = 4,
    seed: int = 0,
) -> Amortisation:
    """Measure what an encoder loses, for some rows: NUTS and a free Gaussian over their latents beside it.

    The gap between log p(x) and the encoder's ELBO parts into what the family cannot do, and what the network cannot.
    The trained parameters are held; rows are sampled one by one, by NUTS on the compiled density.

    Parameters
    ----------
    fit, data
        As for `inference.log_marginal`.
    rows
        Row numbers, or how many, evenly spread.
    family
        Of the free Gaussian: ``"mean_field"``, ``"full_rank"``, or that of the guide, ``"auto"``.
    num_warmup, num_samples, num_chains
        As for `inference.NUTS`. Chains start about the encoder's posterior, and at the prior.
    seed
        Of everything random.

    Raises
    ------
    InputError
        As `inference.log_marginal`; or a row whose posterior and a Gaussian hardly overlap.

    References
    ----------
    Cremer, Li & Duvenaud 2018, Inference Suboptimality in Variational Autoencoders, equations 4 to 6.

    Examples
    --------
    >>> gaps = amortisation(vae_fit, {"x": test_images}, rows=10)
    >>> print(gaps)
    >>> print(gaps.comparison.verdicts["encoder"])
    """
    check_choice("family", family, FAMILIES)
    for name, value, least in (
        ("num_warmup", num_warmup, 1),
        ("num_samples", num_samples, 100),
        ("num_chains", num_chains, 1),
    ):
        check_count(name, value, least=least)
    with latent_rows(fit, data, seed=seed) as found:
        index = found.chosen(rows)
        full_rank, remark = guide_family(found)
        if family != "auto":
            full_rank, remark = family == "full_rank" and found.dim <= MAX_FULL_RANK, ""
        settings = {"num_warmup": num_warmup, "num_samples": num_samples, "num_chains": num_chains, "seed": seed}
        measured = [row_gaps(found, int(row), full_rank=full_rank, **settings) for row in index]
        labels = tuple(found.labels)
    table = pd.DataFrame([numbers for numbers, _ in measured], index=pd.Index(index, name="row"))
    for gap, more, less in (("approximation_gap", "log_p", "best"), ("amortisation_gap", "best", "encoder")):
        table[gap] = table[more] - table[less]
        table[f"{gap}_se"] = np.hypot(table[f"{more}_se"], table[f"{less}_se"])
    posteriors = tuple(posterior for _, posterior in measured)
    remarks = tuple(filter(None, [remark, *_doubts(table)]))
    return Amortisation(table, "full_rank" if full_rank else "mean_field", labels, posteriors, remarks)


def _doubts(table: pd.DataFrame) -> list[str]:
    """Say which rows' numbers are not to be relied upon."""
    doubts = []
    for bad, what in (
        (table["rhat"] > RHAT, f"R-hat is above {RHAT}: their chains disagree, and log p(x) is uncertain"),
        (table["num_divergent"] > 0, "chains diverged: log p(x) may be uncertain"),
        (~table["settled"], "the free Gaussian did not settle: its ELBO may be too low"),
    ):
        if bad.any():
            doubts.append(f"in {bad.sum()} rows ({', '.join(map(str, table.index[bad][:5]))}) {what}.")
    return doubts
