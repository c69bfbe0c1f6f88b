"""Probabilistic PCA and factor analysis: a linear VAE, whose posterior and evidence are known exactly."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

from ppl_models import datasets
from ppl_models.hmm_parts import check_count
from ppl_models.model import Exact, Model, Simulation
from ppl_models.rows import seen_only
from ppl_models.simulation import draw, own_stream

# Loadings of a model that is to learn them start as random numbers of this part of the columns' sds: at zero no
# direction would differ from another.
FIRST_LOADING = 0.3
# And noise at this part: most of the data is noise until loadings explain it.
FIRST_NOISE = 0.8
# Of the encoder, and of what is not given. The gradient has no noise where the encoder is exact, which it can be here.
TRAINING = {"elbo": "stl", "batch_size": 50, "num_epochs": 400, "lr": 0.02, "lr_schedule": "cosine"}


def probabilistic_pca(
    *,
    x: torch.Tensor,
    num_latents: int = 2,
    mean: torch.Tensor | None = None,
    loading: torch.Tensor | None = None,
    noise_scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """Let rows be linear in a few standard normal numbers, with equal noise (Tipping & Bishop 1999, JRSS B 61).

    ``x[i] ~ Normal(mean + loading @ z[i], noise_scale)``. What of mean, loading and noise_scale is given is fixed; the
    rest are parameters of the same names, for maximum likelihood: the decoder of a linear VAE.

    Parameters
    ----------
    x
        (rows, columns); NaN is missing.
    num_latents
        Numbers of a row's ``z``, L.
    mean, loading, noise_scale
        (columns,), (columns, L), ().

    Raises
    ------
    ValueError
        A shape is not as said, or a noise_scale not positive.
    """
    return _story(x, num_latents, mean, loading, noise_scale, ())


def factor_analysis(
    *,
    x: torch.Tensor,
    num_latents: int = 2,
    mean: torch.Tensor | None = None,
    loading: torch.Tensor | None = None,
    noise_scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """Let rows be linear in a few standard normal numbers, with noise of each column's own ``noise_scale`` (columns,).

    Otherwise as `probabilistic_pca` (Rubin & Thayer 1982, Psychometrika 47).
    """
    return _story(x, num_latents, mean, loading, noise_scale, x.shape[-1:])


def linear_guide(
    *,
    x: torch.Tensor,
    num_latents: int = 2,
    mean: torch.Tensor | None = None,
    loading: torch.Tensor | None = None,
    noise_scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """Guess z by a normal that is linear in the row, with one covariance for all: the encoder of a linear VAE.

    The family contains the exact posterior where nothing is missing (`linear_posterior`). A missing entry is taken to
    be its mean, which is then only an approximation.
    """
    mean = _mean(x, mean)
    weight = pyro.param("encoder.weight", lambda: x.new_zeros(num_latents, x.shape[-1]))
    bias = pyro.param("encoder.bias", lambda: x.new_zeros(num_latents))
    root = pyro.param("encoder.scale_tril", lambda: torch.eye(num_latents).to(x), constraint=constraints.lower_cholesky)
    difference = torch.where(x.isnan(), torch.zeros_like(x), x - mean)
    with pyro.plate("data", len(x)):
        return pyro.sample("z", dist.MultivariateNormal(difference @ weight.mT + bias, scale_tril=root))


def linear_posterior(loading: np.ndarray, noise_scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give the weights (L, D) that take ``x - mean`` to the posterior mean of z, and its covariance (L, L).

    Tipping & Bishop 1999, section 3.2, for noise sds () or (D,).
    """
    scaled = loading / np.square(np.broadcast_to(noise_scale, len(loading)))[:, None]
    covariance = np.linalg.inv(np.eye(loading.shape[1]) + loading.T @ scaled)
    return covariance @ scaled.T, covariance


def exact(model: Callable[..., Any], data: Mapping[str, Any]) -> Exact:
    """Give the posterior of z and the evidence, for given ``loading``, ``noise_scale`` and ``mean``.

    The rows with the same entries seen are taken together: given these the posterior is as in `linear_posterior`.

    Raises
    ------
    ValueError
        One of them is not given, or a shape is wrong.
    """
    arguments = {"num_latents": 2, "mean": None, "loading": None, "noise_scale": None} | dict(data)
    wanting = [name for name in ("mean", "loading", "noise_scale") if arguments[name] is None]
    if wanting:
        raise ValueError(
            f"{wanting[0]}: exact answers are for given mean, loading and noise_scale, such as the maximum likelihood "
            f"solution; got no {', '.join(wanting)}."
        )
    noise_shape = () if model is probabilistic_pca else data["x"].shape[-1:]
    _check(**arguments, noise_shape=noise_shape)
    x, mean, W, noise = (np.asarray(arguments[n], np.float64) for n in ("x", "mean", "loading", "noise_scale"))
    num_latents, noise = W.shape[1], np.broadcast_to(noise, x.shape[1])
    z, sd, log_evidence = np.empty((len(x), num_latents)), np.empty((len(x), num_latents)), 0.0
    patterns, which = np.unique(~np.isnan(x), axis=0, return_inverse=True)
    for number, seen in enumerate(patterns):
        rows = which.reshape(-1) == number
        difference = x[rows][:, seen] - mean[seen]
        weight, covariance = linear_posterior(W[seen], noise[seen])
        z[rows], sd[rows] = difference @ weight.T, np.sqrt(np.diag(covariance))
        # log |W W' + Psi| and the quadratic form by Woodbury, from the residual of the posterior mean.
        log_det = 2 * np.log(noise[seen]).sum() - np.linalg.slogdet(covariance).logabsdet
        residual = (difference - z[rows] @ W[seen].T) / noise[seen]
        distance = np.square(residual).sum() + np.square(z[rows]).sum()
        log_evidence -= 0.5 * (distance + rows.sum() * (log_det + seen.sum() * math.log(2 * math.pi)))
    return Exact({"z": z}, {"z": sd}, float(log_evidence))


def principal_components(x: np.ndarray, num_latents: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give mean (D,), loading (D, L) and noise sd of highest likelihood (Tipping & Bishop 1999, equations 7 and 8).

    The likelihood is the same for any rotation of the loading; this one has orthogonal columns, the largest entry of
    each positive.

    Raises
    ------
    ValueError
        Not fewer latents than columns, or missing entries.
    """
    if num_latents >= x.shape[1] or np.isnan(x).any():
        raise ValueError(
            f"num_latents: expected fewer than the {x.shape[1]} columns of a table without gaps, got {num_latents}."
        )
    values, vectors = np.linalg.eigh(np.cov(x.T, bias=True))
    variance = values[: x.shape[1] - num_latents].mean()
    loading = vectors[:, ::-1][:, :num_latents] * np.sqrt(values[::-1][:num_latents] - variance)
    return x.mean(0), _positive(loading), np.sqrt(variance)


def _story(
    x: torch.Tensor,
    num_latents: int,
    mean: torch.Tensor | None,
    loading: torch.Tensor | None,
    noise_scale: torch.Tensor | None,
    noise_shape: tuple[int, ...],
) -> torch.Tensor:
    _check(x, num_latents, mean, loading, noise_scale, noise_shape)
    mean = _mean(x, mean)
    if loading is None:
        shape = (x.shape[-1], num_latents)
        loading = pyro.param("loading", lambda: FIRST_LOADING * _spread(x).unsqueeze(-1) * torch.randn(shape).to(x))
    if noise_scale is None:
        noise_scale = pyro.param(
            "noise_scale",
            lambda: FIRST_NOISE * (_spread(x) if noise_shape else _spread(x).mean()),
            constraint=constraints.positive,
        )
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(num_latents), 1.0).to_event(1))
        noisy = dist.Normal(mean + z @ loading.mT, noise_scale)
        return pyro.sample("x", seen_only(noisy, x).to_event(1), obs=x)


def _mean(x: torch.Tensor, mean: torch.Tensor | None) -> torch.Tensor:
    return pyro.param("mean", lambda: x.nanmean(0).nan_to_num(0.0)) if mean is None else mean


def _spread(x: torch.Tensor) -> torch.Tensor:
    """Give the sds of the columns; 1 where a column is constant."""
    sd = (x - x.nanmean(0)).square().nanmean(0).sqrt()
    return torch.where(sd > 0, sd, torch.ones_like(sd))


def _check(
    x: torch.Tensor,
    num_latents: int,
    mean: torch.Tensor | None,
    loading: torch.Tensor | None,
    noise_scale: torch.Tensor | None,
    noise_shape: tuple[int, ...],
) -> None:
    """Raise ValueError where an argument has a wrong shape, or noise is not positive."""
    check_count("num_latents", num_latents)
    if x.dim() != 2 or x.numel() == 0:
        raise ValueError(f"x: expected a table of shape (rows, columns), none of them 0, got {tuple(x.shape)}.")
    shapes = {"mean": x.shape[-1:], "loading": (x.shape[-1], num_latents), "noise_scale": noise_shape}
    for name, value in (("mean", mean), ("loading", loading), ("noise_scale", noise_scale)):
        if value is not None and tuple(value.shape) != tuple(shapes[name]):
            raise ValueError(
                f"{name}: expected shape {tuple(shapes[name])} with {x.shape[-1]} columns and num_latents="
                f"{num_latents}, got {tuple(value.shape)}."
            )
    # Values are read when validation is on only: a recording that read them holds for them alone.
    if (
        noise_scale is not None
        and torch.distributions.Distribution._validate_args
        and not bool((noise_scale > 0).all())
    ):
        raise ValueError(f"noise_scale: expected positive sds, got {noise_scale.min().item():g}.")


def _positive(loading: np.ndarray) -> np.ndarray:
    """Turn columns so that the largest entry of each is positive."""
    largest = np.abs(loading).argmax(0)
    return loading * np.sign(loading[largest, range(loading.shape[1])])


def _pca_data() -> dict[str, Any]:
    x = datasets.wine()
    return {"x": x, "num_latents": 2} | _tensors(*principal_components(x.numpy(), 2))


def _factor_data() -> dict[str, Any]:
    from sklearn.decomposition import FactorAnalysis

    x = datasets.wine()
    fitted = FactorAnalysis(2, tol=1e-10, max_iter=10_000, svd_method="lapack").fit(x.numpy())
    return {"x": x, "num_latents": 2} | _tensors(
        fitted.mean_, _positive(fitted.components_.T), np.sqrt(fitted.noise_variance_)
    )


def _tensors(mean: np.ndarray, loading: np.ndarray, noise_scale: np.ndarray) -> dict[str, torch.Tensor]:
    given = {"mean": mean, "loading": loading, "noise_scale": noise_scale}
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in given.items()}


def _simulate(
    model: Callable[..., Any],
    seed: int,
    *,
    num_rows: int = 100,
    num_columns: int = 6,
    num_latents: int = 2,
    truth: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Simulation:
    """Draw loadings, noise and mean, which become part of the data, and rows from them."""
    with own_stream(seed):
        shape = () if model is probabilistic_pca else (num_columns,)
        given = {
            "mean": torch.randn(num_columns),
            "loading": torch.randn(num_columns, num_latents),
            "noise_scale": torch.empty(shape).uniform_(0.3, 0.8),
        }
        inputs = {"x": torch.zeros(num_rows, num_columns), "num_latents": num_latents}
        return draw(model, inputs, truth=truth, **given | settings)


PROBABILISTIC_PCA = Model(
    name="probabilistic_pca",
    model=probabilistic_pca,
    data=_pca_data,
    simulate=partial(_simulate, probabilistic_pca),
    summary="rows linear in a few normal numbers, equal noise, exact posterior (chemistry of Italian wines)",
    guide=linear_guide,
    exact=partial(exact, probabilistic_pca),
    table="x",
    training=TRAINING,
)
FACTOR_ANALYSIS = Model(
    name="factor_analysis",
    model=factor_analysis,
    data=_factor_data,
    simulate=partial(_simulate, factor_analysis),
    summary="rows linear in a few normal numbers, noise by column, exact posterior (chemistry of Italian wines)",
    guide=linear_guide,
    exact=partial(exact, factor_analysis),
    table="x",
    training=TRAINING,
)
