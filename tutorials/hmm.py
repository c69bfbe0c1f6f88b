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
# # Hidden Markov models
#
# A series whose behaviour depends on a state that nobody sees. How to write it, how to find the states, how many there
# are, and what comes next. You need to know what a posterior is, and some Pyro.
#
# **The data.** The number of earthquakes of magnitude 7 or more in the world, in each year from 1900 to 2006 (Zucchini,
# MacDonald and Langrock 2016, *Hidden Markov Models for Time Series*, table 1.1).

# %%
import itertools
import os
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from scipy.special import logsumexp
from scipy.stats import poisson

from inference import (
    MAP,
    NUTS,
    AutoVI,
    InputError,
    check,
    compare,
    compare_models,
    fit,
    forecast,
    log_evidence,
    log_predictive,
    predict,
    relabel,
    step_log_densities,
)
from inference.discrete_plots import state_figure
from ppl_models import MODELS, sequences
from ppl_models.hidden_markov import HiddenMarkov
from ppl_models.hmm_forecast import chain_at
from ppl_models.hmm_forecast import forecast as forecast_values
from ppl_models.linear_gaussian import smooth

here = Path(globals().get("__file__", ".")).resolve()  # a notebook has no __file__
root = next(folder for folder in [here, *here.parents] if (folder / "tutorials").is_dir())
out = Path(os.environ.get("TUTORIAL_OUT", root / "out/tutorials"))
out.mkdir(parents=True, exist_ok=True)
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#999999"

quakes = sequences.earthquakes().numpy()
years = np.arange(1900, 2007)


def dispersion(x):
    """Variance over mean along the last axis: 1 for independent Poisson counts."""
    return x.var(-1) / x.mean(-1)


def memory(x):
    """Correlation of each value with the one before."""
    centred = x - x.mean(-1, keepdims=True)
    return (centred[..., 1:] * centred[..., :-1]).sum(-1) / (centred**2).sum(-1)


print(f"mean {quakes.mean():.1f}, variance over mean {dispersion(quakes):.1f}, memory {memory(quakes):.2f}")

# %% [markdown]
# Independent Poisson counts would have a variance equal to their mean and no memory. These have twice that variance and
# more, and a year with many earthquakes follows another one.
#
# ## 1. The story
#
# Suppose that the Earth is in one of K states, each with a rate of earthquakes of its own.
#
# 1. For each state k: draw its rate, and a row of probabilities, `transition[k]`, of where to go from there.
# 2. Draw the first state from `initial`.
# 3. In each year: draw a count from the Poisson distribution with the state's rate; draw the next state from the
#    state's row.
#
# Rates and rows live in a plate `state`: given their priors they are independent. The years are in no plate, because
# each state depends on the one before. They are a loop, and `pyro.markov` says that it looks one step back only.


# %%
def emit_in_turn(x, initial, transition, rate):
    """Steps 2 and 3: a state for each year, and the count that it emits."""
    row = initial
    for t in pyro.markov(range(len(x))):
        state = pyro.sample(f"state_{t}", dist.Categorical(row), infer={"enumerate": "parallel"})
        pyro.sample(f"x_{t}", dist.Poisson(rate[state]), obs=x[t])
        row = transition[state]


def parameters(K):
    """Step 1."""
    initial = pyro.sample("initial", dist.Dirichlet(torch.ones(K)))
    with pyro.plate("state", K):
        transition = pyro.sample("transition", dist.Dirichlet(torch.ones(K)))
        rate = pyro.sample("rate", dist.LogNormal(3.0, 1.0))
    return initial, transition, rate


def quakes_loop(*, x, K):
    emit_in_turn(x, *parameters(K))


# %% [markdown]
# `enumerate` asks that the states be *summed out*: what a sampler or an optimiser sees is the density of the counts
# given the parameters, whatever the states were. For three years and two states, that is a sum over eight paths:

# %%
initial, transition = np.array([0.6, 0.4]), np.array([[0.9, 0.1], [0.2, 0.8]])
rate, short = np.array([15.0, 26.0]), np.array([18.0, 25.0, 21.0])

paths = list(itertools.product(range(2), repeat=3))
joint = np.array(
    [
        initial[a] * transition[a, b] * transition[b, c] * np.prod(poisson.pmf(short, rate[[a, b, c]]))
        for a, b, c in paths
    ]
)
by_hand = joint.sum()
print(pd.DataFrame({"path": paths, "joint density": joint, "given the counts": joint / by_hand}).round(6))

given = [torch.tensor(values, dtype=torch.float64) for values in (short, initial, transition, rate)]
by_loop = -TraceEnum_ELBO(max_plate_nesting=0).loss(emit_in_turn, lambda *_: None, *given)
print(f"log density by hand {np.log(by_hand):.6f}, by Pyro's loop {by_loop:.6f}")

# %% [markdown]
# The second column is the density of a path and of the counts. Its sum is all that the parameters need. The third is
# what the counts say of the path, and will come back in section 5: nothing is lost by summing out.
#
# ## 2. The chain as one distribution
#
# For 107 years there are $2^{107}$ paths. The forward recursion sums over all of them in 107 steps, since the future
# depends on the past through the present state only. The loop does that, too, but as several operations for each year:
# the program grows with the series. `HiddenMarkov` is the same sum as a single distribution, one operation for any
# length:


# %%
def quakes_chain(*, x, K):
    initial, transition, rate = parameters(K)
    emission = dist.Poisson(rate.unsqueeze(-2))  # the same at each step: shape (1, K)
    pyro.sample("x", HiddenMarkov(initial.log(), transition.log(), emission, len(x)), obs=x)


chain = HiddenMarkov(given[1].log(), given[2].log(), dist.Poisson(given[3].unsqueeze(-2)), 3)
by_chain = chain.log_prob(given[0]).item()


def seconds_for(evaluate):
    """Shortest of a few runs."""
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        evaluate()
        times.append(time.perf_counter() - begin)
    return min(times)


all_years = [torch.tensor(quakes), *given[1:]]
elbo = TraceEnum_ELBO(max_plate_nesting=0)
loop_seconds = seconds_for(lambda: elbo.loss(emit_in_turn, lambda *_: None, *all_years))
whole = HiddenMarkov(given[1].log(), given[2].log(), dist.Poisson(given[3].unsqueeze(-2)), 107)
chain_seconds = seconds_for(lambda: whole.log_prob(all_years[0]))
print(f"one density of 107 years: loop {loop_seconds * 1e3:.0f} ms, chain {chain_seconds * 1e3:.0f} ms, ", end="")
print(f"ratio {loop_seconds / chain_seconds:.0f}")

few_years = {"x": quakes[:15], "K": 2}
by_model = {model.__name__: fit(model, few_years, AutoVI(), seed=1) for model in (quakes_loop, quakes_chain)}
for name, result in by_model.items():
    parts = {part: f"{value:.2f} s" for part, value in result.seconds.items()}
    print(f"{name}: {parts}; {log_evidence(result, method='psis')}")

# %% [markdown]
# That is Pyro by itself. `fit` makes native code of either, and both fits are of the same posterior. But the loop's
# program is longer, takes longer to record and to compile, and has a site for each year where the chain has one. For
# 107 years it would be a nuisance; for thousands it is out of the question. Most of what follows uses `poisson_hmm` of
# `ppl_models`: this chain, with rates in increasing order.
#
# ## 3. Several engines
#
# NUTS and AutoVI give the posterior, MAP the parameters of the highest posterior density.

# %%
hmm = MODELS["poisson_hmm"]
data = {"x": quakes, "K": 2, "centre": 20.0}  # log rates: normal around log 20 with sd 1
fits = {"nuts": fit(hmm, data, NUTS(), seed=1), "auto": fit(hmm, data, AutoVI(), seed=1)}
comparison = compare(fits)
print(comparison.reference_verdict, "\n")
print(comparison.verdicts["auto"], "\n")

point = fit(hmm, data, MAP(num_starts=4), seed=1)
print(point.status.message)

# %% [markdown]
# The classic for the point is Baum and Welch's algorithm (EM): find the probabilities of states and moves given the
# parameters, then the parameters given these, and repeat. It climbs to the maximum of the likelihood. The priors here
# are so weak that MAP should come out in nearly the same place.


# %%
def baum_welch(x, initial, transition, rate, num_iterations=300):
    """Expectation and maximisation in turn (Rabiner 1989, section III.C); the last log likelihood, too."""
    for _ in range(num_iterations):
        density = poisson.pmf(x[:, None], rate)
        forward, backward, scale = np.empty_like(density), np.ones_like(density), np.empty(len(x))
        for t in range(len(x)):
            forward[t] = (initial if t == 0 else forward[t - 1] @ transition) * density[t]
            scale[t] = forward[t].sum()
            forward[t] /= scale[t]
        for t in range(len(x) - 2, -1, -1):
            backward[t] = transition @ (density[t + 1] * backward[t + 1]) / scale[t + 1]
        states = forward * backward
        ahead = density[1:] * backward[1:] / scale[1:, None]
        moves = transition * (forward[:-1].T @ ahead)
        log_likelihood = np.log(scale).sum()
        initial, transition = states[0], moves / moves.sum(1, keepdims=True)
        rate = (states * x[:, None]).sum(0) / states.sum(0)
    return initial, transition, rate, log_likelihood


em_initial, em_transition, em_rate, em_log_likelihood = baum_welch(quakes, initial, transition, rate)
map_log_likelihood = float(step_log_densities(point, num_draws=1)["x"][0, 0].sum())
print(f"Baum-Welch: rates {em_rate.round(2)}, log likelihood {em_log_likelihood:.3f}")
print(f"MAP:        rates {point.draws['rate'][0, 0].round(2)}, log likelihood {map_log_likelihood:.3f}")
print(f"posterior:  rates {fits['nuts'].draws['rate'].mean((0, 1)).round(2)}, the means")

# %% [markdown]
# They agree to a tenth of a per cent. The posterior means are a little lower, by less than a posterior sd. `initial` is
# another matter. Baum-Welch is certain of where the chain starts:

# %%
start = fits["nuts"].draws["initial"][..., 0].mean()
print(f"probability that a chain starts quiet: Baum-Welch {em_initial[0]:.4f}, posterior mean {start:.2f}")

# %% [markdown]
# The likelihood of one series is linear in `initial`, so its maximum lies at an edge (MAP's, too). But one start tells
# little about where chains start. The posterior knows that.
#
# ## 4. How many states?
#
# Leave-one-out cross-validation leaves out one observation and predicts it from the others. But years are not
# independent given the parameters: here the whole chain is one observation, and leaving it out leaves nothing.
# `compare_models` says so:

# %%
by_number = {1: fit(hmm, {**data, "K": 1}, NUTS(), seed=1), 2: fits["nuts"]}
by_number |= {K: fit(hmm, {**data, "K": K}, NUTS(), seed=1) for K in (3, 4)}
try:
    compare_models({f"K={K}": result for K, result in by_number.items()})
except InputError as error:
    refusal = str(error)
    print(refusal)

# %% [markdown]
# Two questions do have an answer for one long series.
#
# **The log evidence**: how probable did the model, priors included, make the whole series?

# %%
evidence = {K: log_evidence(result) for K, result in by_number.items()}
for K, found in evidence.items():
    print(f"K={K}: {found}")

# %% [markdown]
# **Leave the future out**: fit the first 80 years, then predict each later year from all before it. Years to come are
# replaced by NaN, which these models take for missing: the chain moves on and nothing is seen.
#
# `step_log_densities` gives $\log p(y_t | y_1 \ldots y_{t-1}, \theta)$ for each draw of the parameters. As years come
# in, draws have to be weighted by how well they predicted the years since the fit: the average over draws of the
# product of these densities up to t, divided by that up to t - 1, is the predictive density of year t. After some years
# few draws have most of the weight, so we fit anew after nine (Bürkner, Gabry and Vehtari 2020).

# %%
begins = (80, 89, 98)
ahead, num_effective, of_past = {2: [], 3: []}, [], {}
for K, begin in itertools.product(ahead, begins):
    past = np.where(np.arange(107) < begin, quakes, np.nan)
    result = fit(hmm, {**data, "x": past, "K": K}, NUTS(), seed=1)
    if begin == begins[0]:
        of_past[K] = log_evidence(result)
    steps = step_log_densities(result, {"x": quakes})["x"].to_numpy().reshape(-1, 107)[:, begin : begin + 9]
    upto = logsumexp(steps.cumsum(1), axis=0) - np.log(len(steps))
    ahead[K].extend(np.diff(upto, prepend=0.0))
    weights = np.exp(steps.sum(1) - steps.sum(1).max())
    num_effective.append(weights.sum() ** 2 / (weights**2).sum())
ahead = {K: np.array(values) for K, values in ahead.items()}
for K, values in ahead.items():
    print(f"K={K}: log predictive density of 1980-2006, one year ahead each: {values.sum():.1f}")
print(f"of 4000 draws at least {min(num_effective):.0f} still count after nine years")

gain = ahead[3] - ahead[2]
gain_error = gain.std() * np.sqrt(len(gain))
print(f"three states over two: {gain.sum():.1f} +- {gain_error:.1f}")

# %% [markdown]
# One state will not do, by more than 40 nats of evidence. Three are preferred to two by 4 nats, and to four by 2. The
# 27 years of the future prefer three to two as well, but not by two standard errors. We go on with three, and would not
# swear to it.
#
# (Both ways are related: the sum over the future is the log evidence of all years less that of the first 80.)
#
# ## 5. Which state when? Three answers
#
# `predict` gives, for each year, the probability of each state given *all* years: the *smoothed* probabilities,
# averaged over the posterior. `joint` is the most probable *path* (Viterbi's). The fit itself has *drawn* paths, one
# for each draw of the parameters, in `x_states`.

# %%
three = by_number[3]
states = predict(three)["x_states"]
print(states.to_dataframe().head(8).round(3))

smoothed, viterbi = states.most_probable, states.joint
drawn = three.draws["x_states"].reshape(-1, 107)


def switches(path):
    """Count the years whose state is not that of the year before."""
    return (np.diff(path) != 0).sum(-1)


same = (drawn == viterbi).all(1).mean()
low, high = np.quantile(switches(drawn), [0.05, 0.95])
print(f"years in which Viterbi's state is not the most probable one: {years[smoothed != viterbi]}")
print(f"switches: year by year {switches(smoothed)}, Viterbi {switches(viterbi)}, drawn {low:.0f} to {high:.0f} (90 %)")
print(f"drawn paths that equal Viterbi's: {same:.2%}")

# %% [markdown]
# They answer different questions.
#
# - *Which state was 1965 in?* The smoothed probability, best for each year by itself. Put together, the best states of
#   all years need not be a likely path, nor even a possible one.
# - *What is the single best story?* Viterbi's path. It is the best of very many, and improbable: hardly any drawn path
#   is equal to it. It also switches less than most of them: a short visit to another state costs two moves, so the best
#   story leaves it out, though some such visits will have happened.
# - *How many switches were there? How long did the longest quiet time last?* Drawn paths. Anything that depends on
#   several years at once must be computed on each of them, and then summarised.

# %%
figure = state_figure(quakes, states, name="earthquakes")
figure.savefig(out / "hmm_states.png", dpi=120)

figure, axes = plt.subplots(2, 1, figsize=(9, 5), layout="constrained", sharex=True)
axes[0].plot(years, quakes, ".-", color=GREY, linewidth=0.7)
axes[0].step(
    years, three.draws["rate"].mean((0, 1))[viterbi], where="mid", color=ORANGE, label="rate on Viterbi's path"
)
axes[0].legend()
axes[0].set(ylabel="earthquakes")
axes[1].imshow(drawn[::100], aspect="auto", cmap="cividis", extent=(1899.5, 2006.5, 40, 0), interpolation="nearest")
axes[1].set(ylabel="drawn paths", yticks=[], xlabel="year")
figure.savefig(out / "hmm_paths.png", dpi=120)

# %% [markdown]
# ## 6. Does the model make data like these?
#
# `posterior_predictive` draws new parameters, then a new path and new counts: another 107 years. Both numbers of the
# introduction, for each of them:

# %%
replicas = {}  # by number of states: (draws, years)
for K in (1, 3):
    tree = by_number[K].to_datatree(posterior_predictive=True)
    replicas[K] = tree["posterior_predictive"]["x"].to_numpy().reshape(-1, 107)

figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
shares = {}
for ax, statistic in zip(axes, (dispersion, memory), strict=True):
    for K, colour in ((1, BLUE), (3, GREEN)):
        values = statistic(replicas[K])
        shares[K, statistic.__name__] = (values > statistic(quakes)).mean()
        ax.hist(values, 50, density=True, color=colour, alpha=0.6, label=f"K={K}")
    ax.axvline(statistic(quakes), color="black", label="the data")
    ax.set(xlabel=statistic.__name__, yticks=[])
axes[0].legend()
figure.savefig(out / "hmm_predictive.png", dpi=120)
print({f"K={K}, {name}": f"{share:.1%} larger than in the data" for (K, name), share in shares.items()})

# %% [markdown]
# One rate for all years never makes counts that vary so much, or last so long. Three states do.
#
# ## 7. What comes next?
#
# `forecast` moves the states on. Values need what the states emit, which the models' own module knows: `chain_at` makes
# the chains at the posterior draws, `forecast_values` continues each of them.

# %%
to_come = forecast(three, 10)["x_states"]
print(to_come.to_dataframe().round(2))

some = {name: v.reshape(-1, *v.shape[2:])[::4] for name, v in three.draws.items()}  # a thousand draws, chains pooled
series = torch.as_tensor(quakes)
chains = chain_at(hmm.model, {**data, "x": series, "K": 3}, {name: torch.as_tensor(v) for name, v in some.items()})
torch.manual_seed(1)
continued = forecast_values(chains, series, 10, num_samples=10)
counts = continued.draws.numpy().reshape(-1, 10)
quiet, busy = np.quantile(counts, [0.05, 0.95], axis=0)
print("90 % of the counts:", [f"{a:.0f}-{b:.0f}" for a, b in zip(quiet, busy, strict=True)])

figure, ax = plt.subplots(figsize=(9, 3), layout="constrained")
ax.plot(years[60:], quakes[60:], ".-", color=GREY)
ax.fill_between(2007 + np.arange(10), quiet, busy, color=BLUE, alpha=0.3, label="90 % of what may come")
ax.plot(2007 + np.arange(10), counts.mean(0), color=BLUE, label="mean")
ax.legend()
ax.set(xlabel="year", ylabel="earthquakes")
figure.savefig(out / "hmm_forecast.png", dpi=120)

# %% [markdown]
# The last years were quiet, so the next will be, probably. Later the forecast forgets where it started and the interval
# widens.
#
# ## 8. States that never come back: a change point
#
# The yearly flow of the Nile at Aswan, 1871-1970 (Cobb 1978). Let the chain start in its first state, and let it move
# on once and never back: it is a change point, and the time of the change is read off the drawn paths. (This is Chib's
# way: the probability to stay is learnt.)

# %%
change = MODELS["left_to_right_hmm"]
nile = change.data()
changed = fit(change, nile, NUTS(), seed=1)
print(check(changed).kind)
first = 1871 + (changed.draws["x_states"] == 0).sum(-1).ravel()
when, times = np.unique(first, return_counts=True)
print(pd.Series(times / len(first), index=when, name="first year of the second state").round(3))
state_figure(nile["x"].numpy(), predict(changed)["x_states"], name="Nile").savefig(out / "hmm_nile.png", dpi=120)

# %% [markdown]
# The second state begins in 1899, with a probability of about three quarters: when the first dam at Aswan was begun.
# The labels mean something by themselves: before and after.
#
# **The continuous sister.** Perhaps the flow did not jump but wandered. Then the hidden state is a number, a random
# walk seen through noise (`local_level`). It is summed out, too: all is Gaussian, and the sum over paths is an integral
# that the Kalman filter does exactly. So the two stories can be compared by their evidence.

# %%
level = MODELS["local_level"]
walk = fit(level, level.data(), AutoVI(), seed=1)
jump_evidence, walk_evidence = log_evidence(changed), log_evidence(walk)
print(f"change point: {jump_evidence}\nrandom walk:  {walk_evidence}")

sds = {name: torch.tensor(walk.draws[name].mean(), dtype=torch.float64) for name in ("level_sd", "noise_sd")}
print({name: f"{value:.0f}" for name, value in sds.items()})
at_means = poutine.trace(poutine.condition(level.model, sds)).get_trace(**level.data()).nodes["x"]["fn"]
kalman = smooth(at_means, nile["x"].numpy())

figure, ax = plt.subplots(figsize=(9, 3), layout="constrained")
ax.plot(1871 + np.arange(100), nile["x"], ".", color=GREY)
ax.plot(1871 + np.arange(100), kalman.mean[:, 0], color=BLUE, label="level, if it wanders (Kalman smoother)")
shares_of_states = predict(changed)["x_states"].probabilities
jump = shares_of_states @ changed.draws["loc"].mean((0, 1))
ax.plot(1871 + np.arange(100), jump, color=ORANGE, label="level, if it jumps")
ax.legend()
ax.set(xlabel="year", ylabel="flow")
figure.savefig(out / "hmm_level.png", dpi=120)

# %% [markdown]
# The data are for the jump, by almost 4 nats. Besides the levels, the two stories differ in what they say of the
# future: the change point has had its one change, while the walk goes on.

# %% [markdown]
# ## 9. Many sequences of different lengths; labels; new ones
#
# The words of the Gettysburg Address, each a sequence of letters. The model knows no alphabet: states emit letters, by
# a table each. Words are padded to the longest; `lengths` says where they end. The first 200 words are for the fit.
# (Two short chains, to save your time. For results to publish, `check` asks for longer ones.)

# %%
letters, alphabet = sequences.gettysburg_letters()
words = "".join(alphabet[int(code)] for code in letters).split()
longest = max(map(len, words))


def padded(words):
    """Words as codes of letters, (words, longest), with their lengths; `_` is a letter that cannot be read."""
    x = np.zeros((len(words), longest))
    for i, word in enumerate(words):
        x[i, : len(word)] = [np.nan if c == "_" else alphabet.index(c) - 1 for c in word]
    return {"x": x, "lengths": np.array([len(word) for word in words])}


spelling = MODELS["categorical_hmm"]
train, test = padded(words[:200]), padded(words[200:])
short_run = NUTS(num_warmup=300, num_samples=300, num_chains=2)
spelt = {f"K={K}": fit(spelling, {**train, "C": 26, "K": K}, short_run, seed=4) for K in (2, 3)}

# %% [markdown]
# Nothing in this model says which state comes first: exchange the two, tables, rows and columns of transitions, and the
# density stays as it was. So each chain of NUTS ends up with one labelling or the other; where they differ, R-hat is
# large and averages over chains mean nothing.
# `relabel` aligns the draws. (`poisson_hmm` did not need it: its rates are in order.)

# %%
aligned = relabel(spelt["K=2"])
print(aligned)
tables = aligned.fit.draws["emission"].mean((0, 1))
moves = aligned.fit.draws["transition"].mean((0, 1))
vowel_state = int(tables[1, 4] > tables[0, 4])  # the one that emits e
print("probability of going to the other state:", moves[[0, 1], [1, 0]].round(2))

# %%
figure, ax = plt.subplots(figsize=(9, 3), layout="constrained")
for k, colour in ((vowel_state, ORANGE), (1 - vowel_state, BLUE)):
    ax.bar(np.arange(26) + 0.2 * (1 if colour == ORANGE else -1), tables[k], 0.4, color=colour)
ax.set_xticks(range(26), alphabet[1:])
ax.set(ylabel="probability in each state")
figure.savefig(out / "hmm_letters.png", dpi=120)

# %% [markdown]
# One state emits a, e, i and o; the other d, h, n, r, s and t, and most other consonants. (200 words do not tell where
# u belongs.) From either state the next letter mostly comes from the other one. Nobody had told the model of vowels and
# consonants.
#
# **How many states?** Words are independent given the parameters, so that leaving one out is well defined, and LOO
# works:

# %%
by_loo = compare_models(spelt)
print(by_loo)

# %% [markdown]
# **New sequences.** `log_predictive` scores the 72 words that were kept back. `predict` gives their states. It takes
# all arrays of the data anew, and a letter that cannot be read is marked by NaN: its state follows from its neighbours.

# %%
held_out = {name: log_predictive(result, test) for name, result in spelt.items()}
for name, score in held_out.items():
    print(f"{name}: {score['x'].per_step:.3f} nats per letter; uniform letters would have {-np.log(26):.3f}")

unseen = ["liberty", "equal", "g_vernment"]
found = predict(aligned.fit, padded(unseen))["x_states"]
for word, chances in zip(unseen, found.probabilities[..., vowel_state], strict=True):
    print("  ".join(f"{letter} {chance:.2f}" for letter, chance in zip(word, chances, strict=False)))

# %% [markdown]
# ## 10. What to remember
#
# | question | one series | several sequences |
# |---|---|---|
# | which state when? | `predict`: `probabilities` of a step, `joint` path; drawn paths for all else | the same |
# | how many states? | `log_evidence`; leave the future out, by `step_log_densities` | `compare_models` (LOO) |
# | what next? | `forecast`; values by `ppl_models.hmm_forecast` | each from its own end |
# | new data? | `log_predictive`, the rest of the series as missing | `predict`, `log_predictive` |
# | labels? | order a parameter, or `relabel` | the same |
#
# ## 11. What we have claimed, checked

# %%
FOUR = 4  # Monte Carlo standard errors

# The data: more variance than mean, and memory. One sum by three routes.
assert dispersion(quakes) > 2
assert memory(quakes) > 0.5
assert abs(by_loop - np.log(by_hand)) < 1e-6  # Pyro's loop may run in single precision
assert abs(by_chain - np.log(by_hand)) < 1e-9
of_loop, of_chain = (log_evidence(result, method="psis") for result in by_model.values())
assert abs(of_loop.value - of_chain.value) < FOUR * np.hypot(of_loop.se, of_chain.se)

# The engines agree; MAP is where Baum and Welch arrive, posterior means are within one sd.
assert comparison.reference_verdict.kind == "TRUST"
assert comparison.verdicts["auto"].kind in ("TRUST", "CANNOT_TELL")
assert point.status.ok
assert abs(map_log_likelihood - em_log_likelihood) < 1e-3
np.testing.assert_allclose(point.draws["rate"][0, 0], em_rate, rtol=1e-3)
rates = fits["nuts"].draws["rate"]
assert np.all(rates.mean((0, 1)) < em_rate)
assert np.all(np.abs(rates.mean((0, 1)) - em_rate) < rates.std((0, 1)))
assert min(em_initial[0], point.draws["initial"][0, 0, 0]) > 0.999
assert 0.6 < start < 0.73  # 2/3, were the first state known

# How many: LOO has one observation and is refused; evidence and the future, with their errors.
assert "one observation" in refusal
for K, least, most in ((2, 3.6, 4.6), (4, 1.4, 2.4)):
    difference = evidence[3].value - evidence[K].value
    error = np.hypot(evidence[3].se, evidence[K].se)
    assert least - FOUR * error < difference < most + FOUR * error, K
assert evidence[2].value - evidence[1].value > 40
for K, values in ahead.items():
    error = np.hypot(np.hypot(evidence[K].se, of_past[K].se), np.sqrt(sum(1 / n for n in num_effective)))
    assert abs(values.sum() - (evidence[K].value - of_past[K].value)) < FOUR * error, K
assert 0 < gain.sum() < 2 * gain_error
assert min(num_effective) > 25

# Paths: smoothed states and Viterbi's differ in a few years, hardly any drawn path is Viterbi's, most switch more.
assert 0 < (smoothed != viterbi).sum() < 10
assert same < 0.01
assert (switches(drawn) > switches(viterbi)).mean() > 0.5
# Averages of drawn paths are the smoothed probabilities: one fact by two routes. An effective draw or more in ten.
error = np.sqrt(states.probabilities * (1 - states.probabilities) / (len(drawn) / 10)) + 1e-3
assert np.all(np.abs(np.stack([(drawn == k).mean(0) for k in range(3)], -1) - states.probabilities) < FOUR * error)

# Predictive checks, and the forecast, whose states come out alike by both functions.
for name in ("dispersion", "memory"):
    assert shares[1, name] < 0.001
    assert 0.02 < shares[3, name] < 0.98
by_chains = continued.state.reshape(-1, 10, 3).mean(0).numpy()
np.testing.assert_allclose(by_chains, to_come.probabilities, atol=0.03)
assert to_come.most_probable[0] == 0
assert busy[-1] - quiet[-1] > busy[0] - quiet[0]
assert np.all(np.diff(to_come.probabilities[:, 0]) < 0)

# The Nile: 1899; the jump before the walk; the filter's evidence is the distribution's density.
assert when[times.argmax()] == 1899
assert abs(times.max() / len(first) - 0.75) < 0.1
difference = jump_evidence.value - walk_evidence.value
assert abs(difference - 3.8) < 0.2 + FOUR * np.hypot(jump_evidence.se, walk_evidence.se)
assert abs(kalman.log_evidence - at_means.log_prob(nile["x"].double()).item()) < 1e-6

# Words: labels aligned; vowels and consonants; three states better than two, at home and on words kept back.
assert aligned.agreement > 0.95
assert aligned.rhat_after < min(1.1, aligned.rhat_before + 0.01)
for chars, k in (("aeio", vowel_state), ("dhnrst", 1 - vowel_state)):
    place = [alphabet.index(c) - 1 for c in chars]
    assert np.all(tables[k, place] > 2 * tables[1 - k, place]), chars
consonants = [c for c, letter in enumerate(alphabet[1:]) if letter not in "aeiou"]
assert (tables[1 - vowel_state] > tables[vowel_state])[consonants].mean() > 0.5
assert min(moves[0, 1], moves[1, 0]) > 0.6
assert len(test["x"]) == 72
assert by_loo.best == "K=3"
assert by_loo.clear
assert held_out["K=3"]["x"].num_steps == test["lengths"].sum()
assert held_out["K=3"].total > held_out["K=2"].total + FOUR * held_out["K=2"].total_error
assert held_out["K=2"]["x"].per_step > -np.log(26)
unread = found.probabilities[unseen.index("g_vernment"), 1, vowel_state]
assert unread > 0.5
