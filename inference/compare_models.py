"""`compare_models`: which of several models of the same data predicts best, by LOO, WAIC and evidence in one table."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr
from arviz_stats import compare as compare_elpd
from arviz_stats import loo
from scipy.special import logsumexp

from inference import limits
from inference.diagnostics import chain_mixing, khat_limit
from inference.errors import InputError
from inference.evidence import log_evidence
from inference.fit import Fit

# Differences of elpd below this, or below two of their standard errors, do not choose between models: the normal
# approximation of their error is too narrow there (Sivula, Magnusson, Matamoros & Vehtari 2020).
SMALL_DIFFERENCE, CLEAR_ERRORS = 4.0, 2.0
# Posterior variances of log likelihoods above this make WAIC unreliable (Vehtari, Gelman & Gabry 2017, section 2.2).
WAIC_VARIANCE = 0.4


@dataclass(frozen=True, eq=False)
class ModelComparison:
    """Models in the order of their expected log predictive density. Print it, or use ``table``.

    Attributes
    ----------
    table
        One row for each model, the best first. From ArviZ: ``rank``, ``elpd`` (by PSIS-LOO, in nats), ``p`` (effective
        number of parameters), ``elpd_diff`` and ``dse`` (to the best, and its standard error), ``weight`` (stacking),
        ``se``. Besides: ``max_khat`` and ``num_bad`` (observations whose k-hat is above its limit), ``elpd_waic``,
        ``p_waic``, ``se_waic``; on request ``log_evidence`` and ``log_evidence_se``.
    best
        Name of the first row.
    warnings
        What makes numbers of the table unreliable.
    """

    table: pd.DataFrame
    best: str
    warnings: tuple[str, ...]

    @property
    def clear(self) -> bool:
        """Whether the best is better than all others by more than chance and approximation explain."""
        others = self.table.iloc[1:]
        gap = np.abs(others["elpd_diff"].to_numpy(dtype=float))
        enough = np.maximum(SMALL_DIFFERENCE, CLEAR_ERRORS * others["dse"].to_numpy(dtype=float))
        return bool((gap > enough).all())

    def __str__(self) -> str:
        shown = self.table.drop(columns=[name for name in ("warning", "rank") if name in self.table])
        lines = [shown.to_string(float_format=lambda value: f"{value:.2f}"), ""]
        if len(self.table) > 1:
            word = "predicts better than the others" if self.clear else "comes first, but not clearly"
            lines.append(f"'{self.best}' {word} (LOO).")
        return "\n".join([*lines, *(f"Warning: {text}" for text in self.warnings)])


def compare_models(fits: Mapping[str, Fit], *, site: str | None = None, evidence: bool = False) -> ModelComparison:
    """Compare models of the same observations, mixtures of different K for instance.

    The expected log predictive density is estimated by PSIS-LOO through ArviZ (Vehtari, Gelman & Gabry 2017) from the
    log likelihood of each observation with discrete latents summed out, so labels play no part. WAIC is the log of the
    mean likelihood less its posterior variance on the log scale, observation by observation (Watanabe 2010).

    Parameters
    ----------
    fits
        By name; of models of the same observations.
    site
        The observed site, if there are several.
    evidence
        Add the log evidence by bridge sampling (`inference.log_evidence`), which also depends on the priors' width.

    Raises
    ------
    InputError
        Fewer than one fit, fits of different observations or of a single one, several observed sites without ``site``,
        or a log likelihood that is not finite.

    Examples
    --------
    >>> found = compare_models({f"K={K}": fit(mixture, {"x": x, "K": K}, NUTS()) for K in (1, 2, 3)})
    >>> found.best
    """
    fits = dict(fits)
    if not fits:
        raise InputError("fits: expected at least one fit by name, got none.")
    trees = {name: fit.to_datatree(log_likelihood=True) for name, fit in fits.items()}
    _require_same_observations(trees)
    sites = {name: _log_likelihood_of(tree, name, site) for name, tree in trees.items()}
    elpds, columns, remarks, wide = {}, {}, [], []
    for name, tree in trees.items():
        if tree["log_likelihood"][sites[name]].sizes.keys() <= {"chain", "draw"}:
            raise InputError(
                f"fits['{name}']: '{sites[name]}' is one observation (a single sequence, whose steps depend on one "
                "another), of which nothing can be left out; compare log_evidence(fit), or scores of later steps "
                "(step_log_densities)."
            )
        with _quiet():
            elpds[name] = loo(tree, var_name=sites[name], pointwise=True)
        khats = np.asarray(elpds[name].pareto_k, dtype=float).ravel()
        limit = khat_limit(fits[name].num_chains * fits[name].num_draws)
        num_bad = int((~(khats < limit)).sum())
        values, variance = waic_terms(_pooled(tree["log_likelihood"][sites[name]]))
        columns[name] = {
            "max_khat": float(khats.max()),
            "num_bad": num_bad,
            "elpd_waic": float(values.sum()),
            "p_waic": float(variance.sum()),
            "se_waic": float(np.sqrt(len(values) * values.var())),
        }
        if num_bad:
            remarks.append(
                f"'{name}': k-hat is above {limit:.2f} for {num_bad} of {len(khats)} observations (at most "
                f"{khats.max():.2f}); its elpd may be off, most likely too high."
            )
        if num_wide := int((variance > WAIC_VARIANCE).sum()):
            wide.append(f"'{name}' {num_wide}")
        remarks += _mixing(name, fits[name], _by_draw(tree["log_likelihood"][sites[name]]))
        if not fits[name].status.ok:
            remarks.append(f"'{name}': the fit did not end well ({fits[name].status.message})")
        if evidence:
            columns[name] |= _evidence(name, fits[name], remarks)
    if wide:
        listed = ", ".join(wide)
        remarks.append(f"WAIC is unreliable where log likelihoods are wide (observations: {listed}); go by LOO.")
    table = _table(elpds).join(pd.DataFrame.from_dict(columns, orient="index"))
    return ModelComparison(table, str(table.index[0]), tuple(remarks))


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence ArviZ on large k-hats, of which ``warnings`` tells, and pandas on how ArviZ calls it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def _table(elpds: dict) -> pd.DataFrame:
    """ArviZ's table, or the same columns for a single model, which ArviZ refuses."""
    if len(elpds) > 1:
        with _quiet():
            return compare_elpd(elpds)
    ((name, found),) = elpds.items()
    row = {"rank": 0, "elpd": found.elpd, "p": found.p, "elpd_diff": 0.0, "weight": 1.0, "se": found.se, "dse": 0.0}
    return pd.DataFrame(row | {"warning": found.warning}, index=[name])


def waic_terms(log_likelihood: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give elpd_waic and the posterior variance of each observation, (N,), from log likelihoods (S, N)."""
    variance = log_likelihood.var(axis=0, ddof=1)
    return logsumexp(log_likelihood, axis=0) - np.log(len(log_likelihood)) - variance, variance


def _mixing(name: str, fit: Fit, log_likelihood: np.ndarray) -> list[str]:
    """Tell of chains that do not agree on log likelihoods (chain, draw), which are the same for all labels."""
    if fit.independent or np.ptp(log_likelihood) == 0:
        return []
    mixing = chain_mixing(log_likelihood[..., None])
    rhat, ess = float(mixing.rhat[0]), float(mixing.ess_bulk[0])
    diverged = float(np.mean(fit.stats.get("diverging", 0.0)))
    found = [
        *([f"R-hat {rhat:.2f}"] if rhat > limits.RHAT else []),
        *([f"worth {ess:.0f} draws"] if ess < limits.ESS else []),
        *([f"{diverged:.1%} of the draws diverged"] if diverged > limits.DIVERGENT_SHARE else []),
    ]
    if not found:
        return []
    return [f"'{name}': its chains do not settle its log likelihood ({', '.join(found)}); see check(fit)."]


def _by_draw(values: xr.DataArray) -> np.ndarray:
    """Log likelihood of all observations together, (chain, draw)."""
    return values.sum([d for d in values.dims if d not in ("chain", "draw")]).transpose("chain", "draw").to_numpy()


def _evidence(name: str, fit: Fit, remarks: list[str]) -> dict[str, float]:
    try:
        found = log_evidence(fit)
    except InputError as error:
        remarks.append(f"'{name}': no log evidence: {error}")
        return {"log_evidence": float("nan"), "log_evidence_se": float("nan")}
    return {"log_evidence": found.value, "log_evidence_se": found.se}


def _pooled(values: xr.DataArray) -> np.ndarray:
    array = values.transpose("chain", "draw", ...).to_numpy()
    return array.reshape(array.shape[0] * array.shape[1], -1).astype(np.float64)


def _log_likelihood_of(tree: xr.DataTree, name: str, site: str | None) -> str:
    known = [str(variable) for variable in tree["log_likelihood"].data_vars]
    if site is None and len(known) > 1:
        raise InputError(f"fits['{name}']: has several observed sites ({', '.join(known)}); choose one by site.")
    chosen = known[0] if site is None else site
    if chosen not in known:
        raise InputError(f"site: expected one of {', '.join(known)} for fits['{name}'], got '{site}'.")
    if not np.isfinite(tree["log_likelihood"][chosen].to_numpy()).all():
        raise InputError(f"fits['{name}']: the log likelihood of '{chosen}' is not finite in some draws.")
    return chosen


def _require_same_observations(trees: Mapping[str, xr.DataTree]) -> None:
    """Refuse models of other observations: their predictive densities are of other things."""
    first, *others = trees
    base = trees[first]["observed_data"]
    for name in others:
        ours = trees[name]["observed_data"]
        same = set(base.data_vars) == set(ours.data_vars) and all(
            base[v].shape == ours[v].shape and np.array_equal(base[v].to_numpy(), ours[v].to_numpy(), equal_nan=True)
            for v in base.data_vars
        )
        if not same:
            text = f"fits['{name}']: its observations differ from those of fits['{first}']"
            raise InputError(f"{text}; compare models of the same data.")
