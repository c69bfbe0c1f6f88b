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
# # Pictures from a few hidden numbers
#
# A variational autoencoder (Kingma & Welling 2014; Rezende, Mohamed & Wierstra 2014) is a story about how pictures come
# to be: *draw a few numbers z, and let a network turn them into a picture x*. This tutorial writes the story down,
# trains it, scores it on pictures that it has not seen, looks at what the hidden numbers have come to mean, fills in
# missing pixels, and asks how far the quick posterior that a network guesses is from the exact one.
#
# **The data.** 1797 handwritten digits of 8 x 8 pixels, which come with scikit-learn (Alpaydin & Kaynak 1998), cut to
# black and white. The first 1500 train, the last 297, by other writers, test. **The question.** How probable is a new
# digit, in nats, and which eight numbers say best what it looks like?

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy.special import logsumexp, softmax
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import nn

from inference import SVI, fit, impute, latent_usage, latent_view, log_marginal
from inference.latent_plots import imputation_figure, picture_grid
from ppl_models import MODELS, images
from ppl_models.linear_latent import principal_components

here = Path(globals().get("__file__", ".")).resolve()  # a notebook has no __file__
root = next((folder for folder in [here, *here.parents] if (folder / "pyproject.toml").is_file()), Path.cwd())
out = Path(os.environ.get("TUTORIAL_OUT", root / "out/tutorials"))
out.mkdir(parents=True, exist_ok=True)

digits = images.digits().binarised()
train, test = digits.train.flatten(1), digits.test.flatten(1)  # (pictures, 64 pixels), zeros and ones
which, test_which = digits.train_labels.int().numpy(), digits.test_labels.int().numpy()
ten = {"": [train[np.flatnonzero(which == digit)[0]].numpy() for digit in range(10)]}
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})
picture_grid(ten, (8, 8)).savefig(out / "vae_digits.png", dpi=120)

# %% [markdown]
# ## 1. Two models to beat
#
# A *negative log-likelihood* is what a picture costs: minus log p(x), in nats. Two simple models set the marks. The
# first has a probability of ink for each pixel and knows nothing else. The second is a mixture of thirty such models,
# thirty smudged prototypes, fitted by the EM algorithm in five lines.


# %%
def of_pixels(x, ink):
    """Log probability of pictures (N, 64) under probabilities of ink (K, 64), each under each: (N, K)."""
    return x @ np.log(ink).T + (1 - x) @ np.log1p(-ink).T


def mixture(x, K, seed, num_steps=200):
    """Weights (K,) and probabilities of ink (K, 64), by EM from a random start; half a picture of each added."""
    belongs = np.random.default_rng(seed).dirichlet(np.ones(K), len(x))
    for _ in range(num_steps):
        count = belongs.sum(0)
        weights, ink = (count + 0.5) / (count + 0.5).sum(), (belongs.T @ x + 0.5) / (count[:, None] + 1)
        belongs = softmax(np.log(weights) + of_pixels(x, ink), axis=1)
    return weights, ink


seen, new = train.double().numpy(), test.double().numpy()
_, ink = mixture(seen, 1, seed=0)
marks = {"independent pixels": -of_pixels(new, ink).mean()}
mixtures = []
for seed in range(3):
    weights, ink = mixture(seen, 30, seed)
    mixtures.append(-logsumexp(np.log(weights) + of_pixels(new, ink), axis=1).mean())
marks["mixture of 30"] = np.mean(mixtures)
for name, nats in marks.items():
    print(f"{name:20} {nats:.2f} nats per test picture")
print("mixtures from three starts:", np.round(mixtures, 2))

# %% [markdown]
# ## 2. The story, and the way back
#
# The story has two lines. For every picture, independently of all others (that is what the *plate* says):
#
# * draw z, eight numbers from a standard normal;
# * draw x: the *decoder*, a network, turns z into 64 probabilities of ink, and every pixel is a coin with its own.
#
# Given z the pixels are independent. Whatever hangs together in a picture does so because of z.
#
# The *guide* goes the other way. The exact posterior p(z | x) has no formula, so a second network, the *encoder*, looks
# at the picture and answers with means and standard deviations of eight independent normals, q(z | x). One network for
# all pictures: this is called *amortised* inference. A new picture costs one pass, where NUTS would take a run.


# %%
class Digits(nn.Module):
    """A decoder and an encoder, two hidden layers each; `model` and `guide` are what Pyro sees of them."""

    def __init__(self, num_latents=8, width=200):
        super().__init__()
        self.num_latents = num_latents
        self.decoder = nn.Sequential(
            *(nn.Linear(num_latents, width), nn.ELU(), nn.Linear(width, width), nn.ELU(), nn.Linear(width, 64))
        )
        self.encoder = nn.Sequential(
            *(nn.Linear(64, width), nn.ELU(), nn.Linear(width, width), nn.ELU(), nn.Linear(width, 2 * num_latents))
        )

    def model(self, *, x):
        """Draw z, draw x."""
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(self.num_latents), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, *, x):
        """Look at x, guess z."""
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = self.encoder(x).chunk(2, dim=-1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


# %% [markdown]
# ## 3. What is maximised
#
# We should like the log-likelihood log p(x), an integral over z that we cannot do. For any q it is at least the ELBO
# (*evidence lower bound*),
#
# $$\log p(x) \;\ge\; \underbrace{E_{q(z \mid x)}[\log p(x \mid z)]}_{\text{reconstruction}}
#   \;-\; \underbrace{KL(q(z \mid x) \,\|\, p(z))}_{\text{what z may say about x}},$$
#
# and what is missing is exactly KL(q(z | x) || p(z | x)), the error of the guess. *Reconstruction* wants z to tell the
# picture as exactly as it can. *KL* is the price: a z that lies where the prior has it costs nothing and says nothing.
# Both networks climb the same bound, so the decoder learns the pictures while the encoder learns to invert the decoder.
#
# `elbo="trace_mean_field"` takes the KL of normals in closed form. Each step sees 100 pictures; `validation` holds a
# tenth of the training pictures out, and the fit keeps the parameters that were best on those.

# %%
torch.manual_seed(0)  # where the networks start
vae = Digits()
recipe = {
    "elbo": "trace_mean_field",
    "batch_size": 100,
    "lr": 5e-3,
    "lr_schedule": "cosine",
    "num_samples": 50,
    "num_chains": 1,
}
trained = fit(vae.model, {"x": train}, SVI(guide=vae.guide, num_epochs=50, validation=0.1, **recipe), seed=1)
print(trained.status.message)
print(f"{trained.seconds['optimisation']:.0f} s")

# %% [markdown]
# ## 4. What is a new picture worth?
#
# `latent_view` scores the test pictures, and keeps what the following sections look at. (Each part can be had alone:
# `log_marginal`, `latent_usage`, `amortisation`.)

# %%
view = latent_view(trained, {"x": test}, labels=test_which, image_shape=(8, 8), num_samples=1000, gaps=4, seed=1)
figures = view.figures()
figures["learning curve"].savefig(out / "vae_learning_curve.png", dpi=120)
print(view.likelihood)

# %% [markdown]
# The learning curve shows two bounds. On the pictures it is trained on the bound rises on and on; on the held-out ones
# it levels off. The space between them is what the networks have learnt by heart: 1500 pictures are few.
#
# The ELBO is a *lower* bound, so it undersells the model. `log_marginal` comes closer by importance sampling: draw z
# from the encoder a thousand times and average p(x, z) / q(z | x). Its average is p(x), whatever the encoder; its
# *error* does depend on the encoder. The `+-` is that Monte Carlo error, and `khat` judges whether it can be believed:
# where a few draws carry all the weight (k-hat above 0.7 or so), the estimate of that picture is likely too low.
#
# First, let us make sure that nothing is hidden here, and compute reconstruction and KL by hand from the trained
# networks.

# %%
networks = trained.state["guide"].__self__  # the trained copy: the `vae` above is as it was
with torch.no_grad():
    torch.manual_seed(2)
    loc, log_scale = networks.encoder(test).chunk(2, dim=-1)
    kl = 0.5 * (loc**2 + (2 * log_scale).exp() - 2 * log_scale - 1).sum(1)
    z = loc + log_scale.exp() * torch.randn(200, *loc.shape)
    reconstruction = dist.Bernoulli(logits=networks.decoder(z)).log_prob(test).sum(-1)  # (200 draws, pictures)
by_hand = float(reconstruction.mean() - kl.mean())
hand_error = float((reconstruction.std(0) / 200**0.5).square().sum().sqrt() / len(test))
print(f"reconstruction {reconstruction.mean():.2f} - KL {kl.mean():.2f} = ELBO {by_hand:.3f} +- {hand_error:.3f}")
print(f"log_marginal says {view.likelihood.elbo.mean():.3f}")

# %%
marks |= {"VAE, by its ELBO": -view.likelihood.elbo.mean(), "VAE, by importance sampling": -view.likelihood.mean}
for name, nats in marks.items():
    print(f"{name:28} {nats:.2f} nats per test picture")
print(f"another 297 test pictures: +- {view.likelihood.sampling_se:.2f}")
paired = -logsumexp(np.log(weights) + of_pixels(new, ink), axis=1) + view.likelihood.log_p
better, better_se = paired.mean(), paired.std(ddof=1) / np.sqrt(len(paired))
print(f"the VAE beats the last mixture by {better:.2f} +- {better_se:.2f}, picture against picture")

# %% [markdown]
# ## 5. What the hidden numbers mean
#
# Nobody told the networks which digit a picture shows, and the prior knows no classes. Yet equal digits lie together.
# Below, the posterior means of the test pictures, in the two directions (of eight) that part the digits best; the
# directions come from the training pictures.

# %%
train_means = trained.draws["z"].mean((0, 1))  # (1500, 8)
separate = LinearDiscriminantAnalysis(n_components=2).fit(train_means, which)
accuracy = separate.score(view.means, test_which)
figure, ax = plt.subplots(figsize=(6, 4.6), layout="constrained")
for digit in range(10):
    points = separate.transform(view.means[test_which == digit])
    ax.scatter(*points.T, s=12, color=f"C{digit}", label=str(digit), linewidths=0)
ax.set(xlabel="first direction", ylabel="second direction")
figure.legend(loc="outside right center", markerscale=2)
figure.savefig(out / "vae_latents.png", dpi=120)
print(f"planes between the digits, drawn in the space of z: {accuracy:.0%} of the test pictures on the right side")

# %% [markdown]
# *Reconstructions* show what z keeps of a picture. *Traversals* show what a single number does: each row moves one of
# the eight from -3 to 3 and holds the others where the first test picture has them. *Samples* from the prior are the
# story told forwards.

# %%
figures["reconstructions"].savefig(out / "vae_reconstructions.png", dpi=120)
figures["traversals"].savefig(out / "vae_traversals.png", dpi=120)
figures["prior samples"].savefig(out / "vae_samples.png", dpi=120)
figures["latent usage"].savefig(out / "vae_usage.png", dpi=120)
print(view.usage)

# %% [markdown]
# A latent is *active* if its posterior mean differs from picture to picture. Here all eight are. Where the price of
# saying something is too high, a latent falls silent: its posterior is the prior, whatever the picture. This is
# *posterior collapse*. We can have it on purpose, by making the KL count three times (a *beta-VAE*, Higgins et al.
# 2017).

# %%
silent = fit(vae.model, {"x": train}, SVI(guide=vae.guide, num_epochs=15, kl_weight=3.0, **recipe), seed=1)
collapsed = latent_usage(silent, {"x": test})
print(collapsed)
print(collapsed.to_frame().round(3))

# %% [markdown]
# ## 6. How good is the encoder? NUTS as the judge
#
# With the decoder held as it is, p(z | x) of a single picture is an ordinary posterior in eight dimensions, and NUTS
# samples it in a moment. So what the ELBO loses for this picture can be measured, and split in two (Cremer, Li &
# Duvenaud 2018): the *approximation gap*, since independent normals cannot have the shape of the posterior, even the
# best of them; and the *amortisation gap*, since one network for all pictures does not give each its best normals.

# %%
print(view.gaps)
figures["gaps"].savefig(out / "vae_gaps.png", dpi=120)
figures["posteriors"].savefig(out / "vae_posteriors.png", dpi=120)
verdict = view.comparison.verdicts["encoder"]
print("\nThe encoder's posteriors:", verdict.kind)

# %% [markdown]
# Two ways to log p(x) that share nothing but the decoder (bridge sampling from NUTS, importance sampling from the
# encoder) give the same number, while the encoder's means are off by large parts of a standard deviation and its
# standard deviations are mostly too small. Both are true: this is a good model of digits with a hasty posterior. For
# compressing or generating it does not matter. If you want to *know z*, use NUTS or weighted draws.
#
# ## 7. Missing pixels
#
# A generative model can be asked about parts. If pixels are missing, z follows from those that are there, and the
# missing ones from z. The ready-made `MODELS["vae"]` does this with `missing=True`: NaN marks a missing pixel, which is
# left out of the density, and the encoder is told which ones it does not see. To learn that it must have seen pictures
# with gaps: each training picture loses between none and three quarters of its pixels. Then we hide the lower half of
# the test pictures.

# %%
rng = np.random.default_rng(0)
gappy = digits.train.clone()
gappy[torch.as_tensor(rng.random(gappy.shape) < rng.uniform(0, 0.75, (len(gappy), 1, 1)))] = torch.nan
halved = digits.test.clone()
halved[:, 4:] = torch.nan

holes = MODELS["vae"]
data = {"x": gappy, "missing": True, "num_latents": 8}
filler = fit(holes, data, SVI(guide=holes.guide, num_epochs=30, **recipe), seed=1)
hidden = {"x": halved}


# %%
def cost(ink, truth):
    """Nats for each hidden pixel, given its probability of ink."""
    ink = np.clip(ink, 0.001, 0.999)
    return -np.mean(np.where(truth == 1, np.log(ink), np.log1p(-ink)))


rows = [3, 60, 130, 200]
lower = digits.test[:, 4:].numpy()
filled = {method: impute(filler, hidden, method=method, seed=1) for method in ("encoder", "weighted")}
by_nuts = impute(filler, hidden, rows=rows, method="nuts", seed=1)
costs = {name: cost(found.mean[:, 4:], lower) for name, found in filled.items()}
frequency = np.broadcast_to((digits.train[:, 4:].mean(0)).numpy(), lower.shape)
print(f"every hidden pixel by its frequency: {cost(frequency, lower):.3f} nats")
for name, value in costs.items():
    print(f"by the upper half, {name:10} {value:.3f} nats")
from_nuts = {n: np.abs(f.mean[rows, 4:] - by_nuts.mean[:, 4:]).mean() for n, f in filled.items()}
print("probabilities of ink, mean distance from NUTS:", {n: f"{value:.3f}" for n, value in from_nuts.items()})
imputation_figure(by_nuts, halved.numpy()).savefig(out / "vae_missing.png", dpi=120)

# %% [markdown]
# The figure shows what was given, the mean of what NUTS puts there, and how unsure that is. The encoder was trained on
# pixels missing here and there, never on lower halves, and is a little off; weighting its draws by importance brings it
# near NUTS without any Markov chain.
#
# ## 8. The ruler: a linear decoder
#
# How would we know if these measurements were wrong? Take a decoder that is linear, with normal noise. This is
# *probabilistic PCA* (Tipping & Bishop 1999), and everything is known: the best decoder by an eigenvalue decomposition,
# the posterior (a normal, so that the approximation gap is zero), the evidence. A linear encoder contains the exact
# posterior (so that the amortisation gap is zero, too). Train it as above, and see whether what must be zero is.

# %%
pca = MODELS["probabilistic_pca"]
grey = images.digits().train.flatten(1).double()
ruler = SVI(guide=pca.guide, **{**recipe, "elbo": "stl", "batch_size": 250, "num_epochs": 120, "lr": 0.03})
linear = fit(pca, {"x": grey, "num_latents": 4}, ruler, seed=1)
bound = log_marginal(linear, num_samples=200)
best = dict(zip(("mean", "loading", "noise_scale"), principal_components(grey.numpy(), 4), strict=True))
evidence = pca.exact({"x": grey, "num_latents": 4, **best}).log_evidence / len(grey)
print(bound)
print(f"highest evidence that any linear decoder can have: {evidence:.3f} nats per picture")

# %% [markdown]
# ## 9. What we have claimed, checked

# %%
likelihood, gaps = view.likelihood, view.gaps

# Scoring: the marks are where they were promised, and the VAE beats both, by more than the noise of test pictures.
assert abs(marks["independent pixels"] - 24.0) < 0.05
assert abs(marks["mixture of 30"] - 18.38) < 0.3
assert -likelihood.mean < 17.8
assert better > 3 * better_se
assert likelihood.mean_se < 0.02
assert np.mean(likelihood.poor) < 0.4

# The ELBO by hand is that of log_marginal, and lies below log p(x).
assert abs(by_hand - likelihood.elbo.mean()) < 4 * hand_error + 0.01
assert 0.3 < likelihood.mean - likelihood.elbo.mean() < 1.5

# The caller's networks are untrained, as they were; the learning curve climbed.
assert not torch.equal(vae.decoder[0].weight, networks.decoder[0].weight)
curve = trained.history["validation_elbo"]
assert curve.max() > curve[0] + 3

# The space of z: digits part without having been named; all eight are used, and fewer where talk is dear.
assert accuracy > 0.6
assert view.usage.num_active == 8
assert collapsed.num_active < 8
assert collapsed.collapsed.any()
assert collapsed.kl.sum() < view.usage.kl.sum() / 1.5

# The gaps: two routes to log p(x) agree, no bound is above it, and the judge is not fooled.
table = gaps.table
assert np.all(np.abs(table["log_p"] - table["log_p_is"]) < 4 * np.hypot(table["log_p_se"], table["log_p_is_se"]) + 0.1)
assert np.all(table["rhat"] < 1.05)
assert np.all(gaps.approximation_gap > 0)
assert np.all(gaps.amortisation_gap > -4 * table["amortisation_gap_se"])
assert gaps.mean("amortisation_gap")[0] > 0.1
assert verdict.kind in ("MEANS_ONLY", "SOME_PARAMETERS", "DO_NOT_TRUST")

# Missing pixels: the upper half tells of the lower; weights bring the encoder to NUTS.
assert costs["encoder"] < cost(frequency, lower)
assert costs["weighted"] < costs["encoder"]
assert from_nuts["weighted"] < from_nuts["encoder"] / 1.5
assert from_nuts["weighted"] < 0.04
assert np.array_equal(by_nuts.mean[:, :4], digits.test[rows][:, :4])

# The ruler: what is to be zero is zero, and no trained decoder has more than the highest evidence.
assert 0 <= bound.mean - bound.elbo.mean() < 0.02
assert -4 * bound.mean_se - 1e-3 < evidence - bound.mean < 0.05
