"""One row of a trained latent-variable model: its posterior by NUTS, its encoder, and the best Gaussian for it."""

from dataclasses import dataclass

import numpy as np
from pyro import distributions as dist

from inference.evidence import two_bridges
from inference.gaussian import MAX_FULL_RANK, Gaussian, base_draws, elbo, fit_gaussian, mean_and_error
from inference.latent_rows import LatentRows
from inference.row_chains import RowChains, row_chains
from inference.row_likelihood import log_mean_exp, row_khat

# Draws for an ELBO: its error is the sd of log weights, about one nat, over their root.
ELBO_DRAWS = 4000
# Fixed draws that a free Gaussian is fitted on: half of its numbers per draw, in nats, is what it over-fits them by.
LEAST_DRAWS, DRAWS_PER_DIM = 512, 16


@dataclass(frozen=True, eq=False)
class RowPosterior:
    """Posteriors of one row's latents, unconstrained.

    Attributes
    ----------
    chains
        Draws of NUTS, (chain, draw, d).
    encoder
        Draws of the guide, (n, d).
    free
        The Gaussian that was fitted to this row.
    """

    chains: np.ndarray
    encoder: np.ndarray
    free: Gaussian

    @property
    def errors(self) -> tuple[np.ndarray, np.ndarray]:
        """Of the encoder's means, in posterior sds, and log ratios of its sds to the posterior's, (d,) each."""
        pooled = self.chains.reshape(-1, self.chains.shape[-1])
        sd = pooled.std(axis=0)
        return (self.encoder.mean(axis=0) - pooled.mean(axis=0)) / sd, np.log(self.encoder.std(axis=0) / sd)


def row_gaps(
    rows: LatentRows, row: int, *, full_rank: bool, num_warmup: int, num_samples: int, num_chains: int, seed: int
) -> tuple[dict[str, float], RowPosterior]:
    """Measure one row: the columns of `inference.amortisation.Amortisation.table`, and what they came from."""
    part, rng = rows.part([row]), np.random.default_rng([seed, row])
    chains = row_chains(
        rows, part, num_chains=num_chains, num_warmup=num_warmup, num_samples=num_samples, seed=seed + row
    )
    evidence = two_bridges(chains.density.log_density, chains.points, rng)
    pieces = list(rows.draws(part, ELBO_DRAWS))
    log_weight = np.concatenate([piece.log_weight for piece in pieces])
    encoder = np.concatenate([piece.points[:, 0].double().numpy() for piece in pieces])
    by_weights, by_weights_se = (float(value[0]) for value in log_mean_exp(log_weight))
    bound, bound_se = mean_and_error(log_weight[:, 0])
    free, best, best_se, settled = _free_gaussian(chains, full_rank=full_rank, rng=rng)
    found = RowPosterior(chains.points, encoder, free)
    mean_error, log_sd_error = found.errors
    numbers = {
        "log_p": evidence.value,
        "log_p_se": evidence.se,
        "log_p_is": by_weights,
        "log_p_is_se": by_weights_se,
        "khat": float(row_khat(log_weight)[0]),
        "encoder": bound,
        "encoder_se": bound_se,
        "best": best,
        "best_se": best_se,
        "mean_error": float(np.abs(mean_error).max()),
        "sd_ratio_low": float(np.exp(log_sd_error.min())),
        "sd_ratio_high": float(np.exp(log_sd_error.max())),
        "rhat": chains.rhat,
        "num_divergent": chains.num_divergent,
        "settled": settled,
    }
    return numbers, found


def _free_gaussian(
    chains: RowChains, *, full_rank: bool, rng: np.random.Generator
) -> tuple[Gaussian, float, float, bool]:
    """Maximise the ELBO of this row over Gaussians; the optimum, its ELBO on fresh draws with error, whether settled.

    It starts at the moments of the posterior, which are the optimum where that is Gaussian.
    """
    draws, density = chains.pooled, chains.density
    loc, sds, dim = draws.mean(axis=0), draws.std(axis=0), draws.shape[1]
    correlation = np.corrcoef(draws.T).reshape(dim, dim)
    # Of all independent normals the best has the conditional sds, where the posterior is Gaussian.
    scale = sds[:, None] * np.linalg.cholesky(correlation)
    start = scale if full_rank else sds / np.sqrt(np.diag(np.linalg.inv(correlation)))
    z = base_draws(max(LEAST_DRAWS, DRAWS_PER_DIM * dim), dim, full_rank=full_rank, random_radius=True, rng=rng)
    fitted = fit_gaussian(density.grad, Gaussian(loc, start), z)
    bound, se = elbo(density.log_density, fitted.q, rng.standard_normal((ELBO_DRAWS, dim)))
    return fitted.q, bound, se, fitted.settled


def guide_family(rows: LatentRows) -> tuple[bool, str]:
    """Whether the guide's Gaussians have full covariances, by a run of it; and a remark where they are no Gaussians."""
    trace, _ = rows.traces(rows.part([0]), 1)
    bases = []
    for name in rows.sites.latent:
        base = trace.nodes[name]["fn"]
        while isinstance(base, dist.Independent | dist.ExpandedDistribution | dist.MaskedDistribution):
            base = base.base_dist
        bases.append(base)
    if len(bases) == 1 and isinstance(bases[0], dist.Normal):
        return False, ""
    full_rank = rows.dim <= MAX_FULL_RANK
    if len(bases) == 1 and isinstance(bases[0], dist.MultivariateNormal):
        return full_rank, ""
    what = "has several sites" if len(bases) > 1 else f"samples a {type(bases[0]).__name__}"
    return full_rank, (
        f"the guide {what}, which is no single Gaussian: gaps are against the best Gaussian, and the amortisation gap "
        "is negative where the guide does better than that."
    )
