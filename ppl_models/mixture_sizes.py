"""Mixtures that find the number of clusters: a sparse finite mixture, and a truncated Dirichlet process."""

from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch

from ppl_models import datasets
from ppl_models.mixture import simulate_rows
from ppl_models.mixture_data import settings_from
from ppl_models.mixture_normal import known_moments, observe, sample_components
from ppl_models.model import Model

# The priors of scales are those of so many components: how many there are is not known, but not all K.
FEW = 3


def sparse_mixture(
    *,
    x: torch.Tensor,
    K: int = 6,
    covariance: str = "full",
    concentration: float = 0.1,
    data_mean: torch.Tensor | None = None,
    data_cov: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mix more normals than there are clusters, with a prior that empties those that are not needed.

    A Dirichlet prior with a small concentration puts its mass where few weights are large; components beyond the number
    of clusters then lose theirs (Malsiner-Walli, Fruehwirth-Schnatter & Gruen 2016, Stat. Comput. 26; Rousseau &
    Mengersen 2011). The number of clusters of a draw is the number of components to which rows are assigned.

    Parameters
    ----------
    x, covariance, data_mean, data_cov
        As for `gaussian_mixture`. The labels have no order, not even on the line.
    K
        Number of components, above the number of clusters.
    concentration
        Of the Dirichlet prior. Below half the number of a component's parameters the superfluous ones empty as rows
        are added. Smaller ones do so sooner, but log weights of empty components then range over 1 / concentration
        nats, which takes gradient-based samplers long.
    """
    known = known_moments(x, K, covariance, data_mean, data_cov)
    if not concentration > 0:
        raise ValueError(f"concentration: expected a positive number, got {concentration!r}.")
    weights = pyro.sample("weights", dist.Dirichlet(x.new_full((K,), concentration)))
    return observe(x, weights, sample_components(known, pyro.plate("component", K), covariance, as_for=FEW))


def dirichlet_process_mixture(
    *,
    x: torch.Tensor,
    K: int = 6,
    covariance: str = "full",
    data_mean: torch.Tensor | None = None,
    data_cov: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mix normals with weights that are broken off a stick (Sethuraman 1994), truncated at K (Ishwaran & James 2001).

    Of what is left of a stick of length one each component takes a part that is Beta(1, alpha), the last one all. The
    prior number of clusters among N rows is about alpha log N; alpha is Gamma(2, 4) (Escobar & West 1995).

    Parameters
    ----------
    x, covariance, data_mean, data_cov
        As for `gaussian_mixture`. Components come in no order, but earlier ones tend to be larger.
    K
        Where the stick is cut off, at least two. It should be well above the number of clusters.
    """
    known = known_moments(x, K, covariance, data_mean, data_cov)
    if K < 2:
        raise ValueError(f"K: a stick is broken into two parts at least, got {K}.")
    alpha = pyro.sample("alpha", dist.Gamma(x.new_tensor(2.0), x.new_tensor(4.0)))
    one = torch.ones_like(alpha)
    part = pyro.sample("part", dist.Beta(one.unsqueeze(-1).expand(*one.shape, K - 1), alpha.unsqueeze(-1)).to_event(1))
    left = (1 - part).cumprod(-1)
    weights = torch.cat([part, torch.ones_like(part[..., :1])], -1) * torch.cat(
        [torch.ones_like(part[..., :1]), left], -1
    )
    weights = pyro.deterministic("weights", weights, event_dim=1)
    return observe(x, weights, sample_components(known, pyro.plate("component", K), covariance, as_for=FEW))


def _data() -> dict[str, Any]:
    return {"x": datasets.iris_measurements(), "K": 6}


SPARSE_MIXTURE = Model(
    name="sparse_mixture",
    model=sparse_mixture,
    data=_data,
    simulate=partial(simulate_rows, sparse_mixture, num_columns=2),
    summary="more normals than clusters, the superfluous ones emptied by the prior (150 irises)",
    table="x",
    settings_from=settings_from,
)
DIRICHLET_PROCESS_MIXTURE = Model(
    name="dirichlet_process_mixture",
    model=dirichlet_process_mixture,
    data=_data,
    simulate=partial(simulate_rows, dirichlet_process_mixture, num_columns=2),
    summary="normals with weights broken off a stick, a truncated Dirichlet process (150 irises)",
    table="x",
    settings_from=settings_from,
)
