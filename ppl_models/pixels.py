"""How a picture arises from what a decoder gives: the three likelihoods, missing pixels, and what is no picture."""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch.distributions import constraints

from ppl_models.mixture_data import checking
from ppl_models.rows import SeenOnly

DECODERS = ("bernoulli", "gaussian", "logistic")
# First noise of grey levels; trained like all weights. An eighth of the range: what digits differ from their mean by.
FIRST_SCALE = 0.125
# Grey levels are stored with seven digits; 256 of them are 0.004 apart.
LEVEL_TOLERANCE = 1e-4


class DiscretisedLogistic(dist.TorchDistribution):
    """A logistic variable rounded to one of ``levels`` equally spaced numbers from 0 to 1 (Kingma et al. 2016).

    The first and the last level take all that lies beyond, so that the probabilities of the levels sum to one.

    Parameters
    ----------
    loc, scale
        Of the logistic variable before rounding.
    levels
        Number of grey levels, from 2.
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}
    support = constraints.unit_interval

    def __init__(
        self, loc: torch.Tensor, scale: torch.Tensor, levels: int, *, validate_args: bool | None = None
    ) -> None:
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        self.levels = levels
        super().__init__(self.loc.shape, validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> "DiscretisedLogistic":
        """Repeat the distribution to a larger batch shape."""
        shape = torch.Size(batch_shape)
        return DiscretisedLogistic(self.loc.expand(shape), self.scale.expand(shape), self.levels)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> torch.Tensor:  # noqa: B008
        """Draw grey levels, shape ``sample_shape + batch_shape``."""
        with torch.no_grad():
            shape = torch.Size(sample_shape) + self.batch_shape
            tiny = torch.finfo(self.loc.dtype).eps
            uniform = torch.rand(shape, dtype=self.loc.dtype, device=self.loc.device).clamp(tiny, 1 - tiny)
            steps = self.levels - 1
            return (steps * (self.loc + self.scale * uniform.logit())).round().clamp(0, steps) / steps

    @property
    def mean(self) -> torch.Tensor:
        """Expected grey level: levels are counted by how probable each is to be reached."""
        return sum(self._reached(k) for k in range(1, self.levels)) / (self.levels - 1)

    @property
    def variance(self) -> torch.Tensor:
        """Variance of the grey level; k^2 = 1 + 3 + ... + (2 k - 1)."""
        squares = sum((2 * k - 1) * self._reached(k) for k in range(1, self.levels))
        return squares / (self.levels - 1) ** 2 - self.mean**2

    def _reached(self, k: int) -> torch.Tensor:
        """Probability of level k or above."""
        return ((self.loc - (k - 0.5) / (self.levels - 1)) / self.scale).sigmoid()

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Log probability of a grey level.

        With a < b the standardised ends of the bin, s(b) - s(a) = s(b) s(-a) (1 - exp(a - b)), s the logistic function:
        no digits cancel, however far the bin lies in a tail.
        """
        half = 0.5 / (self.levels - 1)
        upper, lower = (value + half - self.loc) / self.scale, (value - half - self.loc) / self.scale
        within = torch.log(-torch.expm1(-2 * half / self.scale))
        below, above = F.logsigmoid(upper), F.logsigmoid(-lower)
        return torch.where(value < half, below, torch.where(value > 1 - half, above, below + above + within))


def observe(
    x: torch.Tensor, output: torch.Tensor, *, decoder: str, levels: int, missing: bool, dither: torch.Tensor | None
) -> torch.Tensor:
    """Observe pictures ``x`` (N, *shape) in the site ``x``, given what the decoder gives for each pixel.

    Parameters
    ----------
    x
        Grey levels.
    output
        Logits of ones (``bernoulli``) or locations of grey levels, shape (..., N, *shape). The noise of grey levels
        is a param: one number for ``gaussian``, since single pixels that never change would have none and an
        unbounded density; one for each pixel for ``logistic``, where probabilities are at most one.
    decoder, levels, missing
        Settings of the model.
    dither
        Uniform numbers with which ``x`` is binarised, or None.
    """
    pixels = pixel_distribution(output, x.shape[1:], decoder=decoder, levels=levels)
    value = x if dither is None else binarise(x, dither)
    pixels = SeenOnly(pixels) if missing else pixels
    return pyro.sample("x", pixels.to_event(x.dim() - 1), obs=value)


def pixel_distribution(
    output: torch.Tensor, shape: tuple[int, ...], *, decoder: str, levels: int
) -> dist.TorchDistribution:
    """Give the distribution of the single pixels of pictures of some shape; see `observe`."""
    if decoder == "bernoulli":
        return dist.Bernoulli(logits=output)
    noise = () if decoder == "gaussian" else shape
    scale = pyro.param("decoder.scale", lambda: output.new_full(noise, FIRST_SCALE), constraint=constraints.positive)
    scale = scale.to(output)
    if decoder == "gaussian":
        return dist.Normal(output, scale)
    return DiscretisedLogistic(output, scale, levels)


def sample_dither(x: torch.Tensor) -> torch.Tensor:
    """Sample the numbers with which pictures are binarised, in the same way in model and guide.

    They are uniform in both, whatever the parameters: in every objective the two densities cancel. The model sees the
    guide's draw, and each step draws anew ("dynamic" binarisation; Burda et al. 2016).
    """
    uniform = dist.Uniform(torch.zeros_like(x), torch.ones_like(x))
    return pyro.sample("dither", uniform.to_event(x.dim() - 1))


def binarise(x: torch.Tensor, dither: torch.Tensor) -> torch.Tensor:
    """Make a pixel one with its grey level as probability; NaN remains."""
    return torch.where(x.isnan(), x, (dither < x).to(x.dtype))


def check_images(x: Any, *, decoder: str, levels: int, missing: bool, dynamic: bool) -> tuple[int, ...]:
    """Refuse what is no picture, and give the shape of one.

    Raises
    ------
    ValueError
        Another number of dims, no pictures, grey levels out of range or not those of the decoder, missing pixels
        without ``missing``, a picture without a pixel, or settings out of range.
    """
    if decoder not in DECODERS:
        raise ValueError(f"decoder: expected one of {', '.join(DECODERS)}, got {decoder!r}.")
    if isinstance(levels, bool) or not isinstance(levels, int) or levels < 2:
        raise ValueError(f"levels: expected a number of grey levels from 2, got {levels!r}.")
    if dynamic and decoder != "bernoulli":
        raise ValueError(f"dynamic: binarised pictures need decoder='bernoulli', got {decoder!r}.")
    if not isinstance(x, torch.Tensor) or x.dim() not in (2, 3) or 0 in x.shape or not x.is_floating_point():
        got = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, torch.Tensor) else type(x).__name__
        raise ValueError(
            "x: expected pictures (N, height, width) or rows of pixels (N, pixels), floating and at least one, "
            f"got {got}."
        )
    if checking():
        _check_pixels(x, decoder, levels, missing=missing, dynamic=dynamic)
    return tuple(x.shape[1:])


def _check_pixels(x: torch.Tensor, decoder: str, levels: int, *, missing: bool, dynamic: bool) -> None:
    unseen = x.isnan()
    bad = ~((x >= 0) & (x <= 1) | unseen)
    if bool(bad.any()):
        raise ValueError(f"x: expected grey levels from 0 to 1, got {_first(x, bad)}; divide bytes by 255.")
    if bool(unseen.any()):
        if not missing:
            raise ValueError(
                f"x: {int(unseen.sum())} pixels are missing (NaN), the first at index {_place(unseen)}; set "
                "missing=True, with which the encoder also learns which pixels it sees."
            )
        empty = unseen.flatten(1).all(1)
        if bool(empty.any()):
            raise ValueError(
                f"x: picture {_place(empty)[0]} has no pixel that is seen ({int(empty.sum())} such); leave it out."
            )
    if decoder == "bernoulli" and not dynamic:
        bad = ~((x == 0) | (x == 1) | unseen)
        if bool(bad.any()):
            raise ValueError(
                f"x: decoder='bernoulli' expects zeros and ones, got {_first(x, bad)}; set dynamic=True to draw them "
                "from the grey levels at every step, binarise x beforehand, or use decoder='gaussian' or 'logistic'."
            )
    if decoder == "logistic":
        bad = ((x * (levels - 1)).round() / (levels - 1) - x).abs() > LEVEL_TOLERANCE
        if bool(bad.any()):
            raise ValueError(
                f"x: expected one of {levels} grey levels k / {levels - 1}, got {_first(x, bad)}; set levels to those "
                "of the pictures."
            )


def _place(flags: torch.Tensor) -> tuple[int, ...]:
    return tuple(flags.nonzero()[0].tolist())


def _first(x: torch.Tensor, flags: torch.Tensor) -> str:
    place = _place(flags)
    return f"{x[place].item():g} at index {place} ({int(flags.sum())} such pixels)"


def look(x: torch.Tensor, *, missing: bool) -> torch.Tensor:
    """Give pictures as an encoder sees them: (..., 1 or 2 channels, *shape), grey levels from -1 to 1.

    With ``missing`` a missing pixel is at 0, and the second channel is one where a pixel is missing.
    """
    num_dims = x.dim() - 1
    if not missing:
        return (2 * x - 1).unsqueeze(-num_dims - 1)
    unseen = x.isnan()
    grey = torch.where(unseen, torch.zeros_like(x), 2 * x - 1)
    return torch.stack([grey, unseen.to(x)], -num_dims - 1)


def check_labels(labels: Any, num_rows: int, num_classes: int, *, unknown: bool = False) -> None:
    """Refuse labels that are no classes.

    Parameters
    ----------
    labels
        (N,), numbers from 0.
    num_rows
        N.
    num_classes
        Number of classes.
    unknown
        Whether -1 or NaN may stand for an unknown one.

    Raises
    ------
    ValueError
        Another shape, or a label that is no class.
    """
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
        raise ValueError(f"num_classes: expected a number of classes from 1, got {num_classes!r}.")
    if not isinstance(labels, torch.Tensor) or labels.shape != (num_rows,):
        got = tuple(labels.shape) if isinstance(labels, torch.Tensor) else type(labels).__name__
        raise ValueError(f"labels: expected one for each of {num_rows} pictures, shape ({num_rows},), got {got}.")
    if not checking():
        return
    good = (labels >= 0) & (labels < num_classes) & (labels == labels.round())
    if unknown:
        good = good | labels.isnan() | (labels == -1)
    if not bool(good.all()):
        expected = f"classes from 0 to {num_classes - 1}" + (", or -1 (unknown)" if unknown else "")
        place = _place(~good)
        raise ValueError(
            f"labels: expected {expected}, got {labels[place].item():g} at index {place[0]}; {int((~good).sum())} such."
        )
