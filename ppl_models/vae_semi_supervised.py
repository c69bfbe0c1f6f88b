"""A variational autoencoder that learns classes from few labels, which are summed out where they are unknown."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch

from ppl_models import images
from ppl_models.encoder import check_latents, num_encoded, posterior, standard_normal
from ppl_models.model import HeldOut, Model, Simulation
from ppl_models.networks import image_decoder, image_encoder
from ppl_models.picture_simulation import simulate_pictures
from ppl_models.pixels import binarise, check_images, check_labels, look, observe, sample_dither
from ppl_models.vae import BY_ELBO, HIDDEN
from ppl_models.vae_conditional import NUM_LATENTS, beside, one_hot

# With ten labels a class of scikit-learn's digits the classifier was right on 54 % of the test digits with a weight of
# 1.5, on 75 % with 10 and on 79 % with 50 (docs/vae.md).
LABEL_WEIGHT = 50.0
# Labelled digits of each class in the default data.
LABELS_PER_CLASS = 10
# Log probability of a class that is not the known one: the exponential is zero in any precision, and zero times this is
# zero, unlike zero times infinity.
IMPOSSIBLE = -1e4


def semi_supervised_vae(
    *,
    x: torch.Tensor,
    labels: torch.Tensor,
    num_classes: int = 10,
    num_latents: int = NUM_LATENTS,
    hidden: tuple[int, ...] = HIDDEN,
    network: str = "dense",
    activation: str = "elu",
    decoder: str = "bernoulli",
    levels: int = 17,
    missing: bool = False,
    dynamic: bool = False,
    num_flows: int = 0,
    label_weight: float = LABEL_WEIGHT,
) -> torch.Tensor:
    """Decode pictures from a class, known or not, and a vector of all else (M2 of Kingma et al. 2014).

    The class is the discrete site ``label``, uniform a priori; what is known of it is observed in ``labels``. With an
    enumerating objective (``TraceEnum_ELBO``) the guide sums it out: for unknown labels that is equation 7 of the
    paper, for known ones equation 6.

    Parameters
    ----------
    x
        As `ppl_models.vae.vae`, like the arguments not named here.
    labels
        (N,), the class of each picture, from 0; -1 or NaN where it is unknown.
    num_classes
        Number of classes.
    label_weight
        What the guide's classifier gains for each nat of log probability that it gives to a known label, beside the
        bound (equation 9). The model itself does not depend on it.

    Raises
    ------
    ValueError
        Pictures, labels or settings out of range.
    """
    check_latents(num_latents, num_flows)
    shape = check_images(x, decoder=decoder, levels=levels, missing=missing, dynamic=dynamic)
    check_labels(labels, len(x), num_classes, unknown=True)
    _check_weight(label_weight)
    decode = image_decoder(num_latents + num_classes, shape, hidden=hidden[::-1], kind=network, activation=activation)
    with pyro.plate("data", len(x)):
        dither = sample_dither(x) if dynamic else None
        uniform = dist.Categorical(logits=x.new_zeros(num_classes))
        label = pyro.sample("label", uniform, infer={"enumerate": "parallel"})
        pyro.sample("labels", Reported(label.to(x)), obs=labels)
        z = pyro.sample("z", standard_normal(x, num_latents))
        output = decode("decoder", beside(z, one_hot(label, num_classes, x)))
        return observe(x, output, decoder=decoder, levels=levels, missing=missing, dither=dither)


def semi_supervised_vae_guide(
    *,
    x: torch.Tensor,
    labels: torch.Tensor,
    num_classes: int = 10,
    num_latents: int = NUM_LATENTS,
    hidden: tuple[int, ...] = HIDDEN,
    network: str = "dense",
    activation: str = "elu",
    decoder: str = "bernoulli",
    levels: int = 17,
    missing: bool = False,
    dynamic: bool = False,
    num_flows: int = 0,
    label_weight: float = LABEL_WEIGHT,
) -> None:
    """Classify each picture whose label is unknown, and encode it as a normal of ``z`` for each class that it may have.

    Parameters and errors are those of `semi_supervised_vae`.
    """
    check_latents(num_latents, num_flows)
    shape = check_images(x, decoder=decoder, levels=levels, missing=missing, dynamic=dynamic)
    check_labels(labels, len(x), num_classes, unknown=True)
    _check_weight(label_weight)
    layers = {"hidden": hidden, "kind": network, "activation": activation, "num_channels": 2 if missing else 1}
    encode = image_encoder(shape, num_encoded(num_latents, num_flows), num_extra=num_classes, **layers)
    with pyro.plate("data", len(x)):
        picture = look(binarise(x, sample_dither(x)) if dynamic else x, missing=missing)
        log_probs = image_encoder(shape, num_classes, **layers)("classifier", picture).log_softmax(-1)
        known = (labels >= 0).unsqueeze(-1)
        given = one_hot(labels.nan_to_num(-1.0).clamp_min(0), num_classes, x)
        if label_weight:
            gain = label_weight * (given * log_probs * known).sum(-1)
            pyro.factor("classification", -gain, has_rsample=True)  # an objective takes the guide's factors away
        logits = torch.where(known, IMPOSSIBLE * (1 - given), log_probs)
        label = pyro.sample("label", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})
        output = encode("encoder", picture, one_hot(label, num_classes, x))
        pyro.sample("z", posterior(output, num_latents, num_flows))


def classify(
    x: torch.Tensor,
    *,
    num_classes: int = 10,
    hidden: tuple[int, ...] = HIDDEN,
    network: str = "dense",
    activation: str = "elu",
    missing: bool = False,
) -> torch.Tensor:
    """Give the probabilities q(label | x) of the classes by the guide's classifier, shape (N, num_classes).

    The weights are those in Pyro's parameter store, as a fit leaves them (`inference.Fit.restored`).

    Parameters
    ----------
    x
        Pictures, zeros and ones or grey levels as in training.
    num_classes, hidden, network, activation, missing
        As in training.

    Raises
    ------
    ValueError
        Pictures out of range, or weights that are not there, or of another size.
    """
    shape = check_images(x, decoder="gaussian", levels=2, missing=missing, dynamic=False)
    classifier = image_encoder(
        shape, num_classes, hidden=hidden, kind=network, activation=activation, num_channels=2 if missing else 1
    )
    with torch.no_grad():
        return classifier.trained("classifier", x)(look(x, missing=missing)).softmax(-1)


class Reported(dist.TorchDistribution):
    """What is known of a class: the class itself, or -1 or NaN for nothing, which says nothing about it.

    Parameters
    ----------
    label
        The class, as floating numbers.
    """

    arg_constraints = {}
    support = torch.distributions.constraints.real_vector

    def __init__(self, label: torch.Tensor, *, validate_args: bool | None = None) -> None:
        self.label = label
        super().__init__(label.shape, validate_args=False)  # NaN is a value here

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> "Reported":
        """Repeat the distribution to a larger batch shape."""
        return Reported(self.label.expand(torch.Size(batch_shape)))

    def sample(self, sample_shape: torch.Size = torch.Size()) -> torch.Tensor:  # noqa: B008
        """Report every class."""
        return self.label.expand(torch.Size(sample_shape) + self.batch_shape)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Give zero where the value is the class or unknown, else (practically) minus infinity."""
        other = (value >= 0) & (value != self.label)
        return torch.where(other, IMPOSSIBLE, 0.0).to(self.label)


def _check_weight(label_weight: float) -> None:
    if isinstance(label_weight, bool) or not isinstance(label_weight, int | float) or not 0 <= label_weight < math.inf:
        raise ValueError(f"label_weight: expected a finite number from 0, got {label_weight!r}.")


def few_labels(labels: torch.Tensor, per_class: int = LABELS_PER_CLASS) -> torch.Tensor:
    """Keep the first labels of each class, and put -1 for the others."""
    kept = torch.full_like(labels, -1)
    for label in labels.unique():
        places = (labels == label).nonzero()[:per_class, 0]
        kept[places] = labels[places]
    return kept


def _data() -> dict[str, Any]:
    digits = images.digits().binarised()
    return {"x": digits.train.double(), "labels": few_labels(digits.train_labels).double(), "num_classes": 10}


def _simulate(
    seed: int, *, num_rows: int = 100, num_classes: int = 10, per_class: int = LABELS_PER_CLASS, **others: Any
) -> Simulation:
    """Draw classes and pictures, and report ``per_class`` labels of each class, the others as -1."""
    blank = {"labels": torch.zeros(num_rows, dtype=torch.float64), "num_classes": num_classes}
    drawn = simulate_pictures(semi_supervised_vae, seed, num_rows=num_rows, inputs=blank, **others)
    return drawn._replace(data=drawn.data | {"labels": few_labels(drawn.data["labels"], per_class)})


def _held_out() -> HeldOut:
    """Give pictures whose labels nobody tells."""
    digits = images.digits().binarised()
    return HeldOut({"x": digits.test, "labels": -torch.ones(len(digits.test))}, digits.test_labels.int())


SEMI_SUPERVISED_VAE = Model(
    name="semi_supervised_vae",
    model=semi_supervised_vae,
    data=_data,
    simulate=_simulate,
    summary="variational autoencoder that learns classes from few labels (1500 handwritten digits, 100 with a label)",
    guide=semi_supervised_vae_guide,
    may_miss="x",
    # each step decodes every class: as long as the others take, with fewer epochs
    training={**BY_ELBO, "elbo": "trace_enum", "num_epochs": 30},
    held_out=_held_out,
)
