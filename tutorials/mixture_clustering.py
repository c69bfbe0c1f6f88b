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
# # Clusters, and how sure we are of them
#
# A mixture model is a story about how rows come to be: *pick a cluster k with probability $\pi_k$, then a point from
# cluster k*. This tutorial writes the story down, turns it round (given the points, which clusters?), and asks of each
# answer how far it can be trusted: the labels, single rows, the shape of a cluster, and the number of them.
#
# **The data.** 272 eruptions of the Old Faithful geyser: how long each lasted, and how long one then waited for the
# next, in minutes (Azzalini & Bowman 1990, *Applied Statistics* 39, 357; `faithful` in R. The file is that of
# mwaskom/seaborn-data, which names no licence: bare measurements). **The question.** Are there kinds of eruptions, how
# many, and which eruption is of which kind?

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from sklearn.mixture import GaussianMixture

from inference import MAP, NUTS, SVI, AutoVI, check, clusterings, compare, compare_models, fit, log_predictive, relabel
from inference.discrete_plots import cluster_figure, co_clustering_figure, responsibility_figure
from ppl_models import MODELS

DATA = "tutorials/mixture_clustering_data.csv"
here = Path(globals().get("__file__", ".")).resolve()  # a notebook has no __file__
root = next(folder for folder in [here, *here.parents] if (folder / DATA).is_file())
out = Path(os.environ.get("TUTORIAL_OUT", root / "out/tutorials"))
out.mkdir(parents=True, exist_ok=True)
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#999999"

table = pd.read_csv(root / DATA)
pd.set_option("display.width", 120)
COLUMNS = ["duration (min)", "waiting (10 min)"]
x = np.column_stack([table["duration"], table["waiting"] / 10])  # parameters of order one
print(table.describe().round(1))

# %% [markdown]
# ## 1. The story as code
#
# Read the function below from top to bottom and it is the story. `weights` are the $\pi_k$. A *plate* says "so many of
# these, independently": plate `component` holds one location and one scale (each with two columns) for every cluster,
# plate `data` one assignment and one observed point for every row.
#
# `assignment` is discrete. The line `infer={"enumerate": "parallel"}` is Pyro's way of saying that it is to be summed
# out: the density of a row is $\sum_k \pi_k \, p(x \mid k)$. What is left is continuous, so that gradients exist and
# every engine works. The assignments come back afterwards, from their exact distribution given everything else.


# %%
def eruptions(*, x, K):
    """Pick a kind of eruption, then a duration and a waiting time of that kind."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.full((K,), 2.0)))
    with pyro.plate("component", K):
        loc = pyro.sample("loc", dist.Normal(torch.tensor([3.0, 7.0]), torch.tensor([2.0, 3.0])).to_event(1))
        scale = pyro.sample("scale", dist.LogNormal(-0.7, 0.75).expand([2]).to_event(1))
    with pyro.plate("data", len(x)):
        assignment = pyro.sample("assignment", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(loc[assignment], scale[assignment]).to_event(1), obs=x)


data = {"x": x, "K": 2}

# %% [markdown]
# ## 2. Three engines
#
# `MAP` climbs to the highest density and gives a point. `AutoVI` fits distributions and weighs them. `NUTS` is the
# reference; eight chains, which section 3 needs.

# %%
point = fit(eruptions, data, MAP(num_samples=100), seed=1)
auto = fit(eruptions, data, AutoVI(), seed=1)
nuts = fit(eruptions, data, NUTS(num_chains=8, num_warmup=500, num_samples=500), seed=1)
for name, result in {"MAP": point, "AutoVI": auto, "NUTS": nuts}.items():
    print(f"{name}: {sum(result.seconds.values()):.1f} s. {result.status.message}")

# %% [markdown]
# ## 3. Labels mean nothing
#
# Exchange the names of the two clusters, and weights, locations, scales along with them: the density is the same. With
# K clusters there are K! such copies of every explanation, and the posterior has K! equal modes. Each chain settles in
# one of them. R-hat, which asks whether chains agree, is far above 1.01, and the posterior mean of `loc` is a point
# between the clusters where nothing ever was.
#
# Nothing is wrong but the names. `relabel` finds which sites can be permuted without changing the density, and gives
# every draw the labels under which all draws agree best.

# %%
aligned = relabel(nuts)
print(aligned)
print("mean duration of cluster 0 and 1, before:", nuts.draws["loc"][..., 0].mean((0, 1)).round(2))
print("                                   after:", aligned.fit.draws["loc"][..., 0].mean((0, 1)).round(2))

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 3.5), layout="constrained", sharey=True)
for ax, (title, result) in zip(axes, {"as sampled": nuts, "relabelled": aligned.fit}.items(), strict=True):
    durations = result.draws["loc"][..., 0]
    for k, colour in enumerate((BLUE, ORANGE)):
        ax.plot(durations[..., k].ravel(), color=colour, linewidth=0.6, label=f"cluster {k}")
    ax.set(title=title, xlabel="draw, chain after chain")
axes[0].set_ylabel("mean duration (min)")
axes[1].legend(loc="center right")
figure.savefig(out / "mixture_clustering_labels.png", dpi=120)

# %% [markdown]
# `check` and `compare` do this by themselves, before they judge, and say so in a note. They count the K! modes as one:
# AutoVI has fitted one labelling of two, and that is all there is to know.

# %%
print(check(nuts), "\n")
comparison = compare({"nuts": nuts, "auto": auto})
print("auto:", comparison.verdicts["auto"])

# %% [markdown]
# Some questions can be asked without any labels: are these two rows together? how many clusters are occupied?
# `clusterings` answers those from the draws as they are, whatever the labels do.

# %%
raw, tidy = clusterings(nuts), clusterings(aligned.fit)
print(raw)
print("probability that the first two eruptions are of one kind:", raw.similarity[0, 1])

# %% [markdown]
# ## 4. Which row belongs where, and how surely
#
# `predict` averages the exact probabilities of the assignments (the *responsibilities*) over the draws, so it needs
# labels that mean something: it relabels a fit whose labels are arbitrary. Where that is forbidden
# (`align_labels=False`) it averages over the names, too, and no row can be surer than the share of the chains that
# agree on a name.

# %%
rows = aligned.fit.predict()
found = rows["assignment"]
overview = rows.to_dataframe()
uncertain = overview[overview["probability"] < 0.99].sort_values("probability")
print(table.join(uncertain, how="right").round(3))
print("surest row of the raw fit:", nuts.predict(align_labels=False)["assignment"].probability.max().round(2))

# %% [markdown]
# Two rows of 272 are less than 99 % sure. `inference.discrete_plots` draws this (the figures here are all from there
# unless you see their code): colours for clusters, ellipses of two sds about the rows that each is responsible for,
# open circles below 90 %.

# %%
cluster_figure(x, found, columns=COLUMNS).savefig(out / "mixture_clustering_two.png", dpi=120)

# %% [markdown]
# ## 5. What EM cannot say
#
# The EM algorithm climbs to the highest likelihood; so does `MAP` if the priors are flat. The mixture that comes along,
# `gaussian_mixture`, can do so. Here it is, next to scikit-learn's EM, with one covariance that all clusters share
# (`tied`). A covariance for each, `full`, is its default.

# %%
normals = MODELS["gaussian_mixture"]
best = fit(normals, {"x": x, "K": 2, "covariance": "tied", "flat": True}, MAP(num_samples=100), seed=1)
exact = {"covariance_type": "tied", "n_init": 10, "tol": 1e-7, "max_iter": 2000, "random_state": 0}
em = GaussianMixture(2, **exact).fit(x)
highest = [log_predictive(best).total, em.score(x) * len(x)]
print("highest log likelihood, MAP and EM:", np.round(highest, 4))
more = [GaussianMixture(K, **exact).fit(x).score(x) * len(x) for K in (1, 2, 3, 4)]
print("EM, one to four clusters:", np.round(more, 1))

share = np.sort(aligned.fit.draws["weights"], axis=-1)[..., 0].ravel()
low, high = np.quantile(share, [0.05, 0.95])
print(f"share of the smaller cluster: EM {em.weights_.min():.3f}; posterior 90 % interval {low:.3f} to {high:.3f}")

# %% [markdown]
# EM gives the share of short eruptions to as many digits as you like. That it could as well be .05 more or less, EM
# does not say. Nor how many clusters there are: its likelihood grows with every cluster you add. And where each cluster
# has a covariance of its own the likelihood has no bound at all: let a cluster collapse on one row. A prior on scales
# mends that.
#
# ## 6. Would the model make such data? A posterior predictive check
#
# Our function in section 1 draws duration and waiting independently, given the cluster. So all of their correlation has
# to come from there being two clusters. Look inside one: among eruptions of more than three minutes, does the longer
# one have the longer wait? Data sets drawn from the posterior tell what each model expects.


# %%
def inside(points):
    """Correlation of duration and waiting among eruptions of more than three minutes."""
    return np.corrcoef(points[points[:, 0] > 3].T)[0, 1]


two = fit(normals, {"x": x, "K": 2, "covariance": "tied"}, NUTS(num_warmup=500, num_samples=500), seed=1)
replicated = {}
for name, result in {"independent columns": nuts, "correlated columns": two}.items():
    drawn = result.to_datatree(posterior_predictive=True)["posterior_predictive"]["x"].to_numpy()
    replicated[name] = np.array([inside(points) for points in drawn[:, ::10].reshape(-1, *x.shape)])
    tail = np.mean(replicated[name] >= inside(x))
    print(f"{name}: observed {inside(x):.2f}, expected {replicated[name].mean():.2f}, as large in {tail:.1%} of draws")

# %%
figure, ax = plt.subplots(figsize=(6, 3), layout="constrained")
for (name, values), colour in zip(replicated.items(), (ORANGE, BLUE), strict=True):
    ax.hist(values, bins=30, density=True, alpha=0.6, color=colour, label=name)
ax.axvline(inside(x), color="black", label="observed")
ax.set(xlabel="correlation inside the cluster of long eruptions", ylabel="density")
ax.legend()
figure.savefig(out / "mixture_clustering_check.png", dpi=120)

# %% [markdown]
# The first model cannot make such data. The second can; it does from here on.
#
# ## 7. How many clusters?
#
# One call compares models of the same rows by how well they predict a row that was left out (PSIS-LOO, by ArviZ, with
# assignments summed out, so labels play no part), and by their evidence.

# %%
by_size = {"K=2": two}
for K in (1, 3, 4):
    settings = {"x": x, "K": K, "covariance": "tied"}
    by_size[f"K={K}"] = fit(normals, settings, NUTS(num_warmup=500, num_samples=500), seed=1)
choice = compare_models(by_size, evidence=True)
print(choice)
pair = compare_models({name: by_size[name] for name in ("K=2", "K=3")}).table.loc["K=2"]
print(f"three are better than two by {pair['elpd_diff']:.1f} +- {pair['dse']:.1f} nats (LOO)")

# %% [markdown]
# One cluster is out of the question. Three predict better than two, by about twice the standard error of the
# difference; a fourth adds next to nothing. The evidence, which charges for parameters that are not needed, is highest
# at three. Where do the three lie?

# %%
three = relabel(by_size["K=3"])
print(three)
third = three.fit.predict()["assignment"]
together = clusterings(three.fit)
print(together)
long_ones = x[:, 0] > 3
block = {"short": ~long_ones, "long": long_ones}
block = {name: together.similarity[np.ix_(chosen, chosen)].mean() for name, chosen in block.items()}
for name, chance in block.items():
    print(f"two {name} eruptions are in one component with probability {chance:.2f}")
cluster_figure(x, third, columns=COLUMNS).savefig(out / "mixture_clustering_three.png", dpi=120)
responsibility_figure(third).savefig(out / "mixture_clustering_responsibilities.png", dpi=120)
co_clustering_figure(together.similarity, together.point).savefig(out / "mixture_clustering_pairs.png", dpi=120)
unsure = third.probability < 0.9
print(f"rows less than 90 % sure: {unsure.sum()} of {len(x)}, of them long eruptions: {(unsure & long_ones).sum()}")

# %% [markdown]
# The short eruptions are one cluster as before. The *long* ones are described by two normals that overlap, because
# their cloud is skewed and a normal is not; which of the two a long eruption belongs to is often unsure. Three normals,
# two kinds of eruptions: **components are what a density is made of, clusters are what you name.** LOO and evidence
# count components. The co-clustering matrix has one sharp block, the short eruptions, and one that is blurred.
#
# **Let the model find the number.** `sparse_mixture` has more components than needed and a prior that empties them; the
# number of occupied ones has a posterior of its own. Here each component has its own covariance.

# %%
sparse = fit(MODELS["sparse_mixture"], {"x": x, "K": 4}, NUTS(num_warmup=500, num_samples=500), seed=1)
occupied = clusterings(sparse)
print(occupied.num_clusters.round(2).to_string(), "\n")
sizes = np.sort([np.bincount(row, minlength=4) for row in sparse.draws["assignment"].reshape(-1, len(x))], axis=1)
print("rows in the two largest, median:", np.median(sizes[:, -2:].sum(1)))
sparse_verdict = check(sparse)
print(sparse_verdict)

# %% [markdown]
# Again most draws use a third component, for few rows. Read the verdict before the probabilities: emptying a component
# and filling it again is hard work for a sampler, chains do it rarely, and the digits above will not repeat. What will
# is that no draw has a single cluster, and that two of them hold nine rows in ten.
#
# ## 8. New eruptions
#
# `predict` and `log_predictive` take rows that the fit has not seen; `NaN` is a missing entry, which the ready-made
# mixtures integrate out. For the first two rows below only the duration is known, as it is while people are waiting.
# The last is a very short eruption after which nothing came for 95 minutes.

# %%
kinds = relabel(two).fit
arriving = np.array([[1.9, np.nan], [4.4, np.nan], [3.0, 6.7], [1.5, 9.5]])
new = kinds.predict({"x": arriving}).to_dataframe()
new["log density"] = log_predictive(kinds, {"x": arriving})["x"].pointwise
new = pd.DataFrame(arriving, columns=COLUMNS).join(new.reset_index(drop=True))
print(new.drop(columns=["error", "joint"]).round(3).to_string())

# %% [markdown]
# The third row lies between the clouds. Of the fourth its probabilities say that it must be one of the two; only the
# log density says that it is like neither: compare it with the least probable eruption of all that were observed.

# %%
least = log_predictive(kinds)["x"].pointwise.min()
print(f"least log density of an observed row: {least:.1f}")

# %% [markdown]
# ## 9. When variational inference is wrong on a mixture
#
# Clusters that are far apart are easy: each row is settled, and all parameters are nearly independent. Where components
# overlap, rows wander between them, and weights and locations wander along. A mean field (`SVI(guide="normal")`) has
# every parameter independent of the others, so it makes them too certain. With two clusters it is right, with three it
# is not, and its loss curve looks the same.

# %%
apart = fit(eruptions, data, SVI(guide="normal"), seed=1)
overlapping = fit(normals, {"x": x, "K": 3, "covariance": "tied"}, SVI(guide="normal"), seed=1)
verdicts = {name: check(result) for name, result in {"two, apart": apart, "three, overlapping": overlapping}.items()}
for name, result in {"two, apart": apart, "three, overlapping": overlapping}.items():
    print(f"--- {name}: {result.status.message}\n{verdicts[name]}\n")

# %%
middle = {"NUTS": three.fit.draws["loc"][..., 1, 0].ravel()}
middle["mean field"] = relabel(overlapping).fit.draws["loc"][..., 1, 0].ravel()
figure, ax = plt.subplots(figsize=(6, 3), layout="constrained")
for (name, values), colour in zip(middle.items(), (GREY, ORANGE), strict=True):
    ax.hist(values, bins=60, density=True, alpha=0.6, color=colour, label=name)
ax.set(xlabel="mean duration (min) of the middle component", ylabel="density")
ax.legend()
figure.savefig(out / "mixture_clustering_mean_field.png", dpi=120)

# %% [markdown]
# No reference was needed: short Markov chains that start from the draws of the mean field spread out, and the verdict
# says by how much. `AutoVI` on the same model fits a full covariance, and arrives:

# %%
full_rank = fit(normals, {"x": x, "K": 3, "covariance": "tied"}, AutoVI(), seed=1)
print(check(full_rank))

# %% [markdown]
# ## 10. What we have claimed, checked
#
# Tolerances leave room for four Monte Carlo standard errors, and for another version of a sampler. Verdicts are claims
# about kinds of trouble.

# %%
BAD = ("MEANS_ONLY", "SOME_PARAMETERS", "DO_NOT_TRUST")

# Labels: chains disagree, and agree once relabelled. What needs no labels is the same before and after.
assert aligned.rhat_before > 1.1
assert aligned.rhat_after < 1.01
assert aligned.agreement > 0.99
assert np.array_equal(raw.similarity, tidy.similarity)
assert raw.num_clusters[2] > 0.999
assert check(nuts).kind == comparison.reference_verdict.kind == comparison.verdicts["auto"].kind == "TRUST"

# Rows: two of them are less than 99 % sure. Without relabelling none is surer than 90 %.
assert len(uncertain) == 2
assert uncertain["probability"].between(0.9, 0.99).all()
assert nuts.predict(align_labels=False)["assignment"].probability.max() < 0.9

# EM: the same optimum, no interval, and more clusters always better.
assert abs(highest[0] - highest[1]) < 1e-3
assert abs((high - low) / 2 - 0.05) < 0.01
assert low < em.weights_.min() < high
assert np.all(np.diff(more) > 1)

# Predictive check: the first model is refuted, the second is not.
assert np.mean(replicated["independent columns"] >= inside(x)) < 0.01
assert 0.05 < np.mean(replicated["correlated columns"] >= inside(x)) < 0.95

# How many: not one; three rather than two; a fourth adds little; the third component halves the long eruptions.
scores = choice.table
assert scores["elpd"]["K=2"] - scores["elpd"]["K=1"] > 100
assert 7 < pair["elpd_diff"] < 14
assert 1.5 < pair["elpd_diff"] / pair["dse"] < 3
assert abs(scores["elpd"]["K=4"] - scores["elpd"]["K=3"]) < 2
assert scores["log_evidence"].idxmax() == "K=3"
assert block["short"] > 0.95
assert 0.5 < block["long"] < 0.8
assert (unsure & long_ones).sum() > 40 > 5 > (unsure & ~long_ones).sum()
assert occupied.num_clusters[1] == 0
assert occupied.num_clusters.idxmax() == 3
assert np.median(sizes[:, -2:].sum(1)) > 0.9 * len(x)
assert not sparse_verdict.trusted

# New rows: one column decides where the other is missing; what belongs nowhere has a tiny density.
assert new["assignment"].tolist() == [0, 1, 0, 0]
assert new["probability"].iloc[[0, 1, 3]].gt(0.99).all()
assert 0.6 < new["probability"].iloc[2] < 0.97
assert new["log density"].iloc[3] < least - 15

# The mean field: right on two clusters that are apart, too certain on three that overlap, and convicted of it.
assert apart.status.ok
assert overlapping.status.ok
assert verdicts["two, apart"].trusted
assert verdicts["three, overlapping"].kind in BAD
assert middle["mean field"].std() < 0.75 * middle["NUTS"].std()
assert check(full_rank).trusted
