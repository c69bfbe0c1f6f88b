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
# # Your own model in ten minutes
#
# From a function and a CSV file to a posterior, and to a verdict on whether the quick way of getting it can be
# trusted. You need to know some Pyro: `pyro.sample`, `pyro.plate`.
#
# **The data.** 71 chicks were put on six feeds and weighed after six weeks, in grams (Anonymous, 1948, *Biometrika* 35,
# 214; the `chickwts` of R). **The question.** How heavy do chicks get on each feed, and how much do feeds differ?

# %%
import inspect
import os
from pathlib import Path

import arviz_plots
import arviz_stats
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints

from inference import NUTS, SVI, AutoVI, check, compare, fit, load_fit
from inference.cli import main as ppl

DATA = "tutorials/quickstart_data.csv"
here = Path(globals().get("__file__", ".")).resolve()  # a notebook has no __file__
root = next(folder for folder in [here, *here.parents] if (folder / DATA).is_file())
out = Path(os.environ.get("TUTORIAL_OUT", root / "out/tutorials"))
out.mkdir(parents=True, exist_ok=True)

table = pd.read_csv(root / DATA)
print(table.groupby("feed")["weight"].agg(["count", "mean", "std"]).round(1))

# %% [markdown]
# ## 1. The data: one mapping
#
# The model is called with this mapping: each key is one of its arguments. Arrays, tensors, lists and numbers will do.
# Text will not: replace it by codes 0, 1, ... and keep the labels for the figures. (The command line does this for
# you.)

# %%
codes, labels = pd.factorize(table["feed"], sort=True)
data = {"weight": table["weight"].to_numpy(float), "feed": codes}

# %% [markdown]
# ## 2. The model: one Pyro function
#
# Its arguments are keywords, the data. Every row belongs to a feed; the feeds' average weights scatter around a common
# mean. The parameters are in units of 100 g, so that all are of order one: priors are easier to think about, and
# stochastic optimisers, which take steps of a fixed size, arrive.
#
# Plates say what is independent of what; their names become the dimensions of the results.


# %%
def chicks(*, weight, feed):
    """Weights of chicks (g) by feed, partially pooled."""
    mean = pyro.sample("mean", dist.Normal(2.5, 1.0))
    spread = pyro.sample("spread", dist.HalfNormal(1.0))
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    with pyro.plate("feed", len(feed.unique())):
        effect = pyro.sample("effect", dist.Normal(0.0, spread))
        average = pyro.deterministic("average", mean + effect)
    with pyro.plate("chick", len(weight)):
        pyro.sample("weight", dist.Normal(100 * average[feed], 100 * noise), obs=weight)


# %% [markdown]
# ## 3. Three engines, one call
#
# NUTS is the reference: slower, right when its diagnostics are clean. Here `mean` and all of `effect` are strongly
# correlated (raise one, lower the others: the data hardly notice), so we let it learn correlations,
# `adaptation="low_rank"`.
#
# AutoVI fits a Gaussian to the posterior and has no knobs.
#
# SVI is Pyro's stochastic variational inference, with a guide by name or by hand. `normal` is the mean field: every
# parameter independent of the others. For the correlations just described this is a bad choice. We make it on purpose.

# %%
nuts = fit(chicks, data, NUTS(num_warmup=500, num_samples=1000, adaptation="low_rank"), seed=1)
auto = fit(chicks, data, AutoVI(), seed=1)
mean_field = fit(chicks, data, SVI(guide="normal"), seed=1)

for name, result in {"nuts": nuts, "auto": auto, "mean field": mean_field}.items():
    print(f"{name}: {sum(result.seconds.values()):.1f} s. {result.status.kind}. {result.status.message}")

# %% [markdown]
# Every result has the same form: draws as NumPy arrays, chain x draw x the site's own shape. Deterministic sites are
# there, too.

# %%
print({name: values.shape for name, values in nuts.draws.items()})

# %% [markdown]
# ## 4. A guide by hand
#
# Any function of the same arguments that samples the same latent sites is a guide. This one uses what we know about the
# model: given `mean`, `spread` and `noise`, the effect of a feed is exactly normal, with a mean and an sd from the
# textbook. So only the other three need parameters. The sd of `mean` is learnt in units of `spread`, because an average
# of six feeds scatters in proportion to it.


# %%
def guide(*, weight, feed):
    """Exact for the effects; log-normal or normal for the rest."""

    def learnt(name, start):
        return pyro.param(f"{name}_loc", torch.tensor(start)), pyro.param(
            f"{name}_sd", torch.tensor(0.3), constraint=constraints.positive
        )

    spread = pyro.sample("spread", dist.LogNormal(*learnt("spread", 0.0)))
    noise = pyro.sample("noise", dist.LogNormal(*learnt("noise", 0.0)))
    loc, sd = learnt("mean", 2.5)
    mean = pyro.sample("mean", dist.Normal(loc, sd * spread))

    count = feed.bincount()
    observed = torch.zeros(len(count)).index_add(0, feed, weight / 100) / count
    share = spread**2 / (spread**2 + noise**2 / count)  # of what is observed that is believed, per feed
    with pyro.plate("feed", len(count)):
        pyro.sample("effect", dist.Normal(share * (observed - mean), spread * (1 - share).sqrt()))


by_hand = fit(chicks, data, SVI(guide=guide, lr=0.05), seed=1)
print(by_hand.status.message)

# %% [markdown]
# ## 5. Can it be trusted? Ask the fit itself
#
# `check` judges one fit without another. For NUTS it looks at the agreement of the chains, effective sample sizes,
# divergences and energy. For variational fits it asks whether the optimisation settled, re-weights the draws by
# importance, and looks for modes that were missed.

# %%
for name, result in {"nuts": nuts, "auto": auto, "mean field": mean_field, "by hand": by_hand}.items():
    print(f"--- {name}\n{check(result)}\n")

# %% [markdown]
# The verdict is the first word; the sentence after it has the numbers that decided; the last line says what to do.
#
# | verdict | what it means | what to do |
# |---|---|---|
# | `TRUST` | means, sds and intervals are right to within the stated error | use the draws |
# | `TRUST_REWEIGHTED` | right after weighting the draws | use the weights `next_step` names |
# | `MEANS_ONLY` | means are right, spreads are not | report no intervals; use a richer guide |
# | `SOME_PARAMETERS` | `worst` lists those that are wrong | use the others only |
# | `DO_NOT_TRUST` | shown to be wrong | use NUTS or a richer guide |
# | `CANNOT_TELL` | not shown right, not shown wrong | compare with NUTS |
#
# A `CANNOT_TELL` is no fault: a fit is not called good because nothing bad was seen.
#
# ## 6. Can it be trusted? Compare with NUTS
#
# `compare` measures every quantity of every fit against the reference, in posterior sds, with Monte Carlo errors. It
# judges the reference first; were that unhealthy, it would judge nothing by it.

# %%
comparison = compare({"nuts": nuts, "auto": auto, "mean field": mean_field, "by hand": by_hand}, reference="nuts")
print(comparison)
comparison.to_html(out / "quickstart_report.html")  # the same with figures, in one file

# %% [markdown]
# The mean field has the right means, and an sd of `mean` that is a fifth of what it should be: its intervals would be
# five times too short. The optimisation converged and its loss curve looks perfect. Nothing but a check like these two
# would have told.
#
# ## 7. Everything ArviZ can do
#
# `to_datatree` hands a fit over: posterior, statistics of every draw, data, and on request the pointwise log likelihood
# and predictive draws. The labels that we kept become coordinates.

# %%
coords = {"feed": list(labels)}  # by plate; the dimension is called feed_plate, because "feed" is also a variable
tree = nuts.to_datatree(coords=coords, log_likelihood=True, posterior_predictive=True)
print(arviz_stats.summary(tree, var_names=["mean", "spread", "noise", "average"]))

loo = arviz_stats.loo(tree)
print(loo)

# %%
arviz_plots.plot_trace(tree, var_names=["mean", "spread", "noise"], backend="matplotlib").savefig(
    out / "quickstart_trace.png"
)
forest = arviz_plots.plot_forest(
    {
        "NUTS": tree,
        "by hand": by_hand.to_datatree(coords=coords),
        "mean field": mean_field.to_datatree(coords=coords),
    },
    var_names=["mean", "average"],
    combined=True,
    backend="matplotlib",
)
forest.add_legend("model")
forest.savefig(out / "quickstart_forest.png")

# %% [markdown]
# ## 8. Keep it
#
# A fit is saved whole: draws, statistics, what was asked for.

# %%
saved = nuts.save(out / "quickstart_nuts.fit")
assert np.array_equal(load_fit(saved, chicks).draws["mean"], nuts.draws["mean"])

# %% [markdown]
# ## 9. The same from the command line
#
# Put the function into a file of its own. Columns of the CSV become arguments by name; text becomes codes, and its
# labels appear in the results. In a shell:
# ```
# ppl compare chicks.py:chicks --data quickstart_data.csv --engines auto,nuts --out out/chicks
# ppl check chicks.py:chicks --data quickstart_data.csv --engine auto
# ```
# The exit status is 0 for trust, 1 for anything else, and 2 if the request was wrong, so that a script can act on it.
# Here is the second of them, called from Python:

# %%
file = out / "chicks.py"
file.write_text("import pyro\nimport pyro.distributions as dist\n\n\n" + inspect.getsource(chicks))
status = ppl(["check", f"{file}:chicks", "--data", str(root / DATA), "--engine", "auto", "--seed", "1"])
print("exit status", status)

# %% [markdown]
# A misspelt column, a missing value or a model that does not fit the data gets one line and status 2, never a number:

# %%
bad = out / "misspelt.csv"
table.rename(columns={"weight": "wieght"}).to_csv(bad, index=False)
refused = ppl(["check", f"{file}:chicks", "--data", str(bad)])

# %% [markdown]
# ## 10. What we have claimed, checked
#
# Differences of means are measured against their Monte Carlo standard errors. Four of them leave one false alarm in
# 16 000 for each number. For a variational fit we add the .2 sd that its verdict allows.

# %%
FOUR = 4


def mean_and_error(result, name):
    """Posterior mean of a site and its Monte Carlo standard error."""
    draws = result.draws[name]
    if result.engine.method == "vi":  # independent draws
        return draws.mean((0, 1)), draws.std((0, 1)) / np.sqrt(draws.shape[0] * draws.shape[1])
    dataset = result.to_datatree()["posterior"].dataset
    return draws.mean((0, 1)), arviz_stats.mcse(dataset, var_names=[name])[name].to_numpy()


# The engines agree on means, the mean field included ...
for result in (auto, mean_field, by_hand):
    for name in ("mean", "noise", "average"):
        (ours, our_error), (theirs, their_error) = mean_and_error(result, name), mean_and_error(nuts, name)
        sd = nuts.draws[name].std((0, 1))
        assert np.all(np.abs(ours - theirs) < 0.2 * sd + FOUR * np.hypot(our_error, their_error)), name

# ... but not on the spread of `mean`: the mean field has less than half of it. The sd of n effective draws has a
# relative error of about sqrt(1 / (2 n)); 400 is the least that the verdict on NUTS accepts.
ratio = mean_field.draws["mean"].std() / nuts.draws["mean"].std()
assert ratio * (1 + FOUR * np.sqrt(1 / 800)) < 0.5

# The reference is healthy; the bad fit is caught both ways, though it converged; the good one is not condemned.
assert comparison.reference_verdict.trusted
assert mean_field.status.ok
assert not check(mean_field).trusted
assert comparison.verdicts["mean field"].kind == "DO_NOT_TRUST"
assert comparison.verdicts["by hand"].kind in ("TRUST", "TRUST_REWEIGHTED", "CANNOT_TELL")
assert auto.draws.keys() == mean_field.draws.keys() == by_hand.draws.keys() == nuts.draws.keys()

# Leave-one-out is reliable for every chick, and the command line spoke the same verdict as `check` did.
assert float(loo.pareto_k.max()) < 0.7
assert status == (0 if check(auto).trusted else 1)
assert refused == 2

# Sunflower and casein are better than horsebean and linseed, surely; which of the first two, the data do not say.
average = dict(zip(labels, np.moveaxis(nuts.draws["average"], -1, 0), strict=True))
assert np.mean(average["sunflower"] > average["linseed"]) > 0.99
assert 0.1 < np.mean(average["sunflower"] > average["casein"]) < 0.9
