# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The ELBO, taken apart
#
# Variational inference turns a posterior into an optimisation: choose, from a family of distributions q that one can
# draw from, the one with the highest *evidence lower bound*, the ELBO. This tutorial takes the bound apart on a model
# where everything is known exactly. You will see its two terms, what it misses, tighter bounds, and what difference it
# makes which of them is optimised.
#
# **The data.** Distances (megaparsec) and velocities (km/s) of 24 nebulae, with which Hubble showed in 1929 that the
# universe expands (*PNAS* 15, 168, table 1). **The question.** How fast, per megaparsec?

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, norm

from inference import SVI, check, fit
from inference.elbo import ELBOS

here = Path(globals().get("__file__", ".")).resolve()  # a notebook has no __file__
root = next(folder for folder in [here, *here.parents] if (folder / "tutorials").is_dir())
out = Path(os.environ.get("TUTORIAL_OUT", root / "out/tutorials"))
out.mkdir(parents=True, exist_ok=True)
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#555555"

distance = np.array(
    [0.032, 0.034, 0.214, 0.263, 0.275, 0.275, 0.45, 0.5, 0.5, 0.63, 0.8, 0.9]
    + [0.9, 0.9, 0.9, 1.0, 1.1, 1.1, 1.4, 1.7, 2.0, 2.0, 2.0, 2.0]
)
velocity = np.array(
    [170, 290, -130, -70, -185, -220, 200, 290, 270, 200, 300, -30]
    + [650, 150, 500, 920, 450, 500, 500, 960, 500, 850, 800, 1090]
)
data = {"distance": distance, "velocity": velocity / 100}  # in 100 km/s, so that all is of order one

# %% [markdown]
# ## 1. A model with nothing to hide
#
# Velocity is a straight line in distance, with a common drift `K` (as in Hubble's paper: our own motion) and a slope
# `H`. Nebulae also move by themselves, with a scatter of about 200 km/s, which we take as known. Then the posterior is
# Gaussian, and so is the distribution of the data with both parameters integrated out. Its log density at our data is
# the **log evidence**, the number that the ELBO bounds.

# %%
SCATTER, PRIOR_SD = 2.0, np.array([2.0, 10.0])


def hubble(*, distance, velocity):
    K = pyro.sample("K", dist.Normal(0.0, 2.0))
    H = pyro.sample("H", dist.Normal(0.0, 10.0))
    with pyro.plate("nebula", len(distance)):
        pyro.sample("velocity", dist.Normal(K + H * distance, 2.0), obs=velocity)


X, y = np.column_stack([np.ones_like(distance), distance]), data["velocity"]
precision = X.T @ X / SCATTER**2 + np.diag(PRIOR_SD**-2.0)
covariance = np.linalg.inv(precision)
mean, sd = covariance @ X.T @ y / SCATTER**2, np.sqrt(np.diag(covariance))
log_evidence = multivariate_normal(cov=SCATTER**2 * np.eye(len(y)) + X @ np.diag(PRIOR_SD**2) @ X.T).logpdf(y)

print(f"K = {mean[0]:.2f} +- {sd[0]:.2f}, H = {mean[1]:.2f} +- {sd[1]:.2f} (100 km/s), log evidence {log_evidence:.3f}")
print(f"correlation of K and H: {covariance[0, 1] / sd.prod():.2f}")

# %% [markdown]
# The two parameters are correlated: all distances are positive, so a higher line with a smaller slope fits nearly as
# well.
#
# ## 2. Two terms
#
# $$\mathrm{ELBO}(q) = \mathrm{E}_q[\log p(\text{data} \mid K, H)] - \mathrm{KL}(q \,\|\, \text{prior})$$
#
# The first term asks q to sit where the data are well explained. The second asks it to stay as wide as the prior. We
# walk through a family with one parameter: independent normals, centred where the posterior is, their widths `c` times
# those of the best such pair. For a Gaussian both terms are a line of algebra.

# %%
best_sd = 1 / np.sqrt(np.diag(precision))  # of independent normals; section 3 shows that they are the best


def two_terms(q_sd):
    """Expected log likelihood, and KL(q || prior), of independent normals around the posterior mean."""
    at_the_centre = norm.logpdf(y, X @ mean, SCATTER).sum()
    expected = at_the_centre - 0.5 * np.sum((X * q_sd) ** 2) / SCATTER**2
    kl = np.log(PRIOR_SD / q_sd) + 0.5 * (q_sd**2 + mean**2) / PRIOR_SD**2 - 0.5
    return expected, kl.sum()


def kl_to_posterior(q_sd):
    """KL(q || posterior), by the formula for two Gaussians with one mean."""
    q = np.diag(q_sd**2)
    return 0.5 * (np.trace(precision @ q) - 2 - np.linalg.slogdet(precision @ q).logabsdet)


widths = np.geomspace(0.2, 4, 81)
expected, kl = np.array([two_terms(c * best_sd) for c in widths]).T
elbo = expected - kl
gap = np.array([kl_to_posterior(c * best_sd) for c in widths])

print("    c   E log likelihood   KL to prior      ELBO   KL to posterior   ELBO + KL to posterior")
for i in [0, 20, int(elbo.argmax()), 60, 80]:
    print(f"{widths[i]:5.2f}{expected[i]:16.3f}{kl[i]:15.3f}{elbo[i]:14.3f}{gap[i]:15.3f}{elbo[i] + gap[i]:20.3f}")

# %% [markdown]
# The last column is the same number in every row, the log evidence. That is the identity behind it all,
#
# $$\log p(\text{data}) = \mathrm{ELBO}(q) + \mathrm{KL}(q \,\|\, \text{posterior}),$$
#
# so the bound is a bound because a KL divergence is never negative, and raising it brings q closer to the posterior,
# without anyone having to know the posterior.


# %%
def draw_ellipse(ax, covariance, **style):
    """Draw the curve that holds 90 % of a Gaussian around the posterior mean."""
    angle = np.linspace(0, 2 * np.pi, 200)
    circle = np.sqrt(-2 * np.log(0.1)) * np.array([np.cos(angle), np.sin(angle)])
    ax.plot(*(mean[:, None] + np.linalg.cholesky(covariance) @ circle), **style)


figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.5), layout="constrained")
draw_ellipse(left, covariance, color=GREY, linewidth=3, label="posterior")
for c, colour in ((0.4, GREEN), (1.0, BLUE), (2.0, ORANGE)):
    draw_ellipse(left, np.diag((c * best_sd) ** 2), color=colour, label=f"q, c = {c:g}")
left.set(xlabel="K (100 km/s)", ylabel="H (100 km/s per Mpc)", title="90 % of each distribution")
right.plot(widths, expected - log_evidence, color=GREEN, label="log likelihood, less log evidence")
right.plot(widths, -kl, color=ORANGE, label="minus KL to the prior")
right.plot(widths, elbo - log_evidence, color=BLUE, linewidth=3, label="their sum: ELBO less evidence")
right.axhline(0, color=GREY, linestyle="--", label="where ELBO is the evidence")
right.fill_between(widths, elbo - log_evidence, 0, color=BLUE, alpha=0.1, label="gap: KL to the posterior")
right.set(xscale="log", xlabel="width c", ylabel="nats", ylim=(-13, 6))
right.set_title("Two terms that pull in two directions")
right.set_xticks([0.2, 0.5, 1, 2, 4], ["0.2", "0.5", "1", "2", "4"])
right.minorticks_off()
for ax in (left, right):
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
figure.savefig(out / "elbo_terms.png", dpi=120)

# %% [markdown]
# ## 3. What the best q misses
#
# At the best width the gap is not zero: no pair of independent normals is the tilted posterior. What is left is exactly
# $-\frac12\log(1-\rho^2)$, with $\rho$ the correlation of `K` and `H`. And since KL(q || posterior) punishes q for
# being where the posterior is not, but hardly for being absent where it is, the best q lies inside: its sds are
# $\sqrt{1-\rho^2}$ times the posterior's. The means are right.
#
# `SVI(guide="normal")` optimises over just this family. It reports log weights, log p - log q of every draw, whose
# average is the ELBO.

# %%
rho = covariance[0, 1] / sd.prod()
mean_field = fit(hubble, data, SVI(guide="normal", num_particles=10, num_samples=5000), seed=3)
log_weight = mean_field.stats["log_weight"].ravel()
estimate, error = log_weight.mean(), log_weight.std() / np.sqrt(log_weight.size)
best = np.subtract(*two_terms(best_sd))

print(f"ELBO: {estimate:.3f} +- {error:.3f} by SVI, {best:.3f} by algebra; log evidence {log_evidence:.3f}")
print(f"gap: {log_evidence - best:.3f}; -0.5 log(1 - rho^2) = {-0.5 * np.log(1 - rho**2):.3f}")
for name, exact_sd in zip(("K", "H"), sd, strict=True):
    print(f"sd of {name}: {mean_field.draws[name].std():.3f} by SVI, {exact_sd:.3f} in truth")

# %% [markdown]
# ## 4. Tighter bounds
#
# Average k importance weights *inside* the logarithm (Burda, Grosse & Salakhutdinov 2016):
#
# $$\mathrm{ELBO} = \mathcal{L}_1 \le \mathcal{L}_2 \le \dots \le \log p(\text{data}), \qquad
# \mathcal{L}_k = \mathrm{E}\,\log \frac1k \sum_{i=1}^k \frac{p(\text{data}, z_i)}{q(z_i)}, \quad z_i \sim q$$
#
# For k = 1 and 2 we integrate on a grid (Gauss-Hermite quadrature), so these are exact; beyond we use draws, and give
# the Monte Carlo error.


# %%
def log_weights(z):
    """Give log p(data, z) - log q(z) at standardised points z, shape (n, 2), for the best independent normals."""
    theta = mean + best_sd * z
    log_p = norm.logpdf(y, theta @ X.T, SCATTER).sum(-1) + norm.logpdf(theta, 0, PRIOR_SD).sum(-1)
    return log_p - norm.logpdf(theta, mean, best_sd).sum(-1)


nodes, node_weights = np.polynomial.hermite_e.hermegauss(40)
node_weights /= node_weights.sum()
grid = np.stack(np.meshgrid(nodes, nodes), -1).reshape(-1, 2)
grid_weights = np.outer(node_weights, node_weights).ravel()
on_grid = log_weights(grid)
exact_bounds = {
    1: grid_weights @ on_grid,
    2: grid_weights @ (np.logaddexp.outer(on_grid, on_grid) - np.log(2)) @ grid_weights,
}

rng = np.random.default_rng(1)
by_draws = log_weights(rng.standard_normal((200_000, 2)))
bounds = {}
for k in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000):
    terms = logsumexp(by_draws.reshape(-1, k), axis=1) - np.log(k)
    bounds[k] = terms.mean(), terms.std() / np.sqrt(terms.size)
    exactly = f"   exactly {exact_bounds[k]:.4f}" if k in exact_bounds else ""
    print(f"k = {k:4d}: {bounds[k][0]:.4f} +- {bounds[k][1]:.4f}{exactly}")
print(f"evidence: {log_evidence:.4f}")

# %%
figure, ax = plt.subplots(figsize=(6.5, 4), layout="constrained")
ks, (values, errors) = list(bounds), np.array(list(bounds.values())).T
ax.errorbar(ks, values, 2 * errors, color=BLUE, marker="o", markersize=4, label="by draws, two standard errors")
ax.plot(*zip(*exact_bounds.items(), strict=True), "s", color=ORANGE, markersize=9, fillstyle="none", label="exactly")
ax.axhline(log_evidence, color=GREY, linestyle="--", label="log evidence")
ax.annotate("the ELBO", (1, exact_bounds[1]), xytext=(14, -3), textcoords="offset points")
ax.set(xscale="log", xlabel="k, draws inside the logarithm", ylabel="bound (nats)")
ax.set_title("More draws, a tighter bound")
ax.set_xticks([1, 10, 100, 1000], ["1", "10", "100", "1000"])
ax.minorticks_off()
ax.legend(loc="lower right")
figure.savefig(out / "elbo_bounds.png", dpi=120)

# %% [markdown]
# The climb is slow, because q is narrower than the posterior: the rare draw in the posterior's tails has an enormous
# weight. How heavy the tail of the weights is, is measured by its index: from .5 their variance is infinite, from .7
# averages over weighted draws are not to be relied upon. Here the index is exactly $|\rho|$, 0.80. (Along the
# posterior's long axis q has $1 - |\rho|$ times its variance; for a standard normal $z$ the weights grow like
# $\exp(\frac12 |\rho| z^2)$.) With a real posterior one has only an estimate of it, the k-hat in the verdict. It is
# noisy: six seeds, 20 000 draws each, gave .57 to .89.

# %%
print(check(mean_field))

# %% [markdown]
# ## 5. Which bound to optimise?
#
# `SVI(elbo=...)` takes the names in `ELBOS`. All are fitted here to the same independent normals. Some are other ways
# to estimate the same ELBO, with more or less noise. Those that average weights, or look from the posterior's side (the
# divergence KL(posterior || q)), want something else of q: to cover the posterior. Their optima are flat and their
# gradients noisy, so two runs differ more.

# %%
SAME_OPTIMUM = {"trace", "trace_mean_field", "trace_enum", "trace_graph", "stl"}  # all of them estimate one ELBO
LEFT_OUT = {
    "energy": "no bound: q is to predict the data well, so that with much data it shrinks to a point",
    "mmd": "no bound: another distance to the prior in place of the KL divergence, so its optimum is no posterior",
}

rows = {}
for name in ELBOS:
    if name in LEFT_OUT:
        print(f"{name:17} left out; {LEFT_OUT[name]}")
        continue
    # One particle would do for an average outside the logarithm; inside it there have to be several.
    result = fit(hubble, data, SVI(guide="normal", elbo=name, num_particles=10, num_samples=5000), seed=3)
    weights = result.stats["log_weight"].ravel()
    ratios = np.array([result.draws[site].std() for site in ("K", "H")]) / sd
    rows[name] = ratios, weights.mean(), weights.std() / np.sqrt(weights.size)
    print(
        f"{name:17} sds {ratios[0]:.2f} and {ratios[1]:.2f} of the true ones, ELBO {weights.mean():.2f}, "
        f"check: {check(result).kind}"
    )

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.8), layout="constrained")
draw_ellipse(left, covariance, color=GREY, linewidth=3, label="posterior")
others = [name for name in rows if name not in SAME_OPTIMUM]
draw_ellipse(left, np.diag((rows["trace"][0] * sd) ** 2), color=BLUE, label="the ELBO, however estimated")
for i, name in enumerate(others):
    colour = [ORANGE, GREEN, "#CC79A7", "black", "#56B4E9"][i % 5]
    style = ["-", "--", "-.", ":"][i % 4]  # so that two that agree are seen both
    draw_ellipse(left, np.diag((rows[name][0] * sd) ** 2), color=colour, linestyle=style, label=name)
left.set(xlabel="K (100 km/s)", ylabel="H (100 km/s per Mpc)", title="90 % of what each objective chooses")
place = np.arange(len(rows))
for i, (site, marker, colour) in enumerate((("K", "o", BLUE), ("H", "s", ORANGE))):
    right.plot([row[0][i] for row in rows.values()], place, marker, color=colour, fillstyle="none", label=site)
right.axvline(np.sqrt(1 - rho**2), color=GREY, linestyle=":", label="best ELBO")
right.axvline(1, color=GREY, linestyle="--", label="posterior")
right.set_yticks(place, rows)
right.set_xlim(0, max(row[0].max() for row in rows.values()) + 0.1)
right.invert_yaxis()
right.set(xlabel="sd of q by sd of the posterior", title="Its sds")
for ax in (left, right):
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=4 if ax is right else 2)
figure.savefig(out / "elbo_objectives.png", dpi=120)

# %% [markdown]
# No width of independent normals is right in every respect. Sds as the posterior's are right one by one, but such a q
# holds pairs of `K` and `H` that the data exclude. The remedy is a richer family, not another bound:
# `SVI(guide="multivariate_normal")` or `AutoVI()`.

# %%
full_rank = fit(hubble, data, SVI(guide="multivariate_normal", num_particles=10, num_samples=5000), seed=3)
full_weight = full_rank.stats["log_weight"].ravel()
print(f"ELBO {full_weight.mean():.3f}, log evidence {log_evidence:.3f}\n{check(full_rank)}")

# %% [markdown]
# ## 6. What we have claimed, checked
#
# Exact numbers to rounding; estimates within four Monte Carlo standard errors, which leaves one false alarm in 16 000
# for each. A fit may stop a little short of the optimum: 0.05 nats, 10 % of an sd.

# %%
FOUR, SHORT, SD_SHORT = 4, 0.05, 0.1

# The identity, for every width; the best width is 1; the gap there is that of the correlation.
assert np.allclose(elbo + gap, log_evidence, rtol=0, atol=1e-9)
assert abs(widths[elbo.argmax()] - 1) < 0.05
assert np.isclose(log_evidence - best, -0.5 * np.log(1 - rho**2), rtol=0, atol=1e-9)
assert np.allclose(best_sd, sd * np.sqrt(1 - rho**2))

# The bounds are in order; quadrature, algebra and draws agree.
assert np.isclose(exact_bounds[1], best, rtol=0, atol=1e-9)
assert exact_bounds[1] < exact_bounds[2] < log_evidence
for k, exactly in exact_bounds.items():
    assert abs(bounds[k][0] - exactly) < FOUR * bounds[k][1], k
for k, wider in zip(ks, ks[1:], strict=False):
    assert bounds[k][0] < bounds[wider][0] + FOUR * np.hypot(bounds[k][1], bounds[wider][1]), k
    assert bounds[wider][0] < log_evidence + FOUR * bounds[wider][1], wider
assert bounds[1000][0] > exact_bounds[2] + FOUR * bounds[1000][1]

# SVI finds the optimum of the ELBO, and no q is above the evidence.
assert best - SHORT - FOUR * error < estimate < best + FOUR * error
for name, (ratios, value, value_error) in rows.items():
    assert value < best + FOUR * value_error, name
    if name in SAME_OPTIMUM:
        assert value > best - SHORT - FOUR * value_error, name
        assert np.allclose(ratios, np.sqrt(1 - rho**2), rtol=SD_SHORT), name
    else:
        assert np.all(ratios > (1 + SD_SHORT) * np.sqrt(1 - rho**2)), name  # they cover more

# A Gaussian with a correlation is the posterior itself.
assert abs(full_weight.mean() - log_evidence) < SHORT
assert check(mean_field).kind != "TRUST"
assert check(full_rank).trusted
