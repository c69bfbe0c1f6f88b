"""Normalising flows as guides: zuko's, over the flat unconstrained vector, whitened by a Gaussian.

A draw is ``loc + L f(z)`` with z standard normal, f the flow, and (loc, L) a Gaussian already fitted, so that the flow
starts at the identity and learns only what the Gaussian misses.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from pyro.contrib.zuko import ZukoToPyro
from pyro.distributions.transforms import AffineTransform, LowerCholeskyAffine
from pyro.infer.autoguide import AutoContinuous
from torch.distributions import constraints

from inference.gaussian import Gaussian

# Flows of Agrawal, Sheldon & Domke (2020) and of the ranking in notes/vi-algorithms.md, section 15.
SPLINE_PAIRS, SPLINE_BINS = 2, 8
AFFINE_COUPLINGS = 10
AUTOREGRESSIVE_LAYERS = 3
# Width of the two hidden layers of each conditioner, by dimension D.
MIN_WIDTH, MAX_WIDTH, WIDTH_PER_DIM = 32, 128, 4
# A flow starts this close to the identity, yet with a gradient for every weight.
INITIAL_WEIGHT = 1e-3
# Where there is no Gaussian to start from: the spread of Pyro's own automatic guides.
INITIAL_SCALE = 0.1


class FlowDistribution(ZukoToPyro):
    """A zuko distribution with a support, which Pyro's wrapper does not tell."""

    support = constraints.real_vector


class AutoFlow(AutoContinuous):
    """An automatic guide whose draws are a flow of standard normal ones.

    Parameters
    ----------
    model
        A Pyro model with continuous latents.
    build
        Gives a flow for a dimension: a ``zuko.lazy.Flow`` whose transform maps base draws to the whitened space.
    init_loc_fn
        As for Pyro's automatic guides.
    whitening
        The Gaussian that the flow starts from; by default around the initial values.
    """

    def __init__(
        self,
        model: Callable,
        build: Callable[[int], Any],
        *,
        init_loc_fn: Callable,
        whitening: Gaussian | None = None,
    ) -> None:
        super().__init__(model, init_loc_fn=init_loc_fn)
        self._build, self._whitening = build, whitening

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        loc, whitening = self._init_loc(), self._whitening
        if whitening is None or len(whitening.loc) != self.latent_dim:
            whitening = Gaussian(loc.numpy(), np.full(self.latent_dim, INITIAL_SCALE))
        self.register_buffer("loc", torch.as_tensor(whitening.loc, dtype=loc.dtype))
        self.register_buffer("scale", torch.as_tensor(whitening.scale, dtype=loc.dtype))
        self.flow = self._build(self.latent_dim)
        _start_at_identity(self.flow)

    def get_posterior(self, *args: Any, **kwargs: Any) -> FlowDistribution:
        """Give the distribution of the latent vector."""
        from zuko.distributions import NormalizingFlow
        from zuko.transforms import ComposedTransform

        flow = self.flow()
        return FlowDistribution(NormalizingFlow(ComposedTransform(self._affine().inv, flow.transform.inv), flow.base))

    def get_transform(self, *args: Any, **kwargs: Any) -> Any:
        """Give the map from standard normal draws to the latent vector; None before the guide has run."""
        if not hasattr(self, "flow"):
            return None
        from zuko.transforms import ComposedTransform

        return ComposedTransform(self.flow().transform, self._affine())

    def _affine(self) -> torch.distributions.Transform:
        """Give the map from the whitened space to the latent vector."""
        if self.scale.ndim == 2:
            return LowerCholeskyAffine(self.loc, scale_tril=self.scale)
        return AffineTransform(self.loc, self.scale, event_dim=1)


def spline(dim: int) -> Any:
    """Pairs of couplings by monotone rational-quadratic splines (Durkan et al. 2019), each followed by an affine pair.

    Splines map the box from -5 to 5 onto itself. Alone they cover 80 % of a banana whose tails lie outside of the box
    that its best Gaussian gives; affine couplings carry draws out of it.
    """
    zuko = _zuko()
    flow = zuko.flows.RealNVP(dim, transforms=4 * SPLINE_PAIRS, randmask=dim > 2, **_conditioner(dim))
    for i in (4 * pair + half for pair in range(SPLINE_PAIRS) for half in (0, 1)):
        mask = {} if dim == 1 else {"mask": flow.transform.transforms[i].mask}
        flow.transform.transforms[i] = zuko.flows.coupling.GeneralCouplingTransform(
            dim,
            univariate=zuko.transforms.MonotonicRQSTransform,
            shapes=[(SPLINE_BINS,), (SPLINE_BINS,), (SPLINE_BINS - 1,)],
            **mask,
            **_conditioner(dim),
        )
    return flow


def realnvp(dim: int) -> Any:
    """Affine couplings (Dinh, Sohl-Dickstein & Bengio 2017)."""
    return _zuko().flows.RealNVP(dim, transforms=AFFINE_COUPLINGS, randmask=dim > 2, **_conditioner(dim))


def iaf(dim: int) -> Any:
    """Affine autoregressive layers in the direction in which draws are cheap (Kingma et al. 2016)."""
    return _zuko().flows.MAF(dim, transforms=AUTOREGRESSIVE_LAYERS, **_conditioner(dim))


FLOWS: dict[str, Callable[..., AutoFlow]] = {
    name: partial(AutoFlow, build=build) for name, build in (("iaf", iaf), ("spline", spline), ("realnvp", realnvp))
}


def _conditioner(dim: int) -> dict[str, Any]:
    if dim == 1:  # there is nothing to condition on
        return {}
    return {"hidden_features": [min(max(MIN_WIDTH, WIDTH_PER_DIM * dim), MAX_WIDTH)] * 2, "activation": torch.nn.Tanh}


def _start_at_identity(flow: Any) -> None:
    """Shrink the last layer of every conditioner; without one, the parameters themselves."""
    for transform in flow.transform.transforms:
        last = list(transform.parameters())[-2:] if hasattr(transform, "hyper") else list(transform.parameters())
        for p in last:
            p.data.mul_(INITIAL_WEIGHT)


def _zuko() -> Any:
    """Import zuko, which switches the validation of all distributions off as it is imported."""
    before = torch.distributions.Distribution._validate_args
    import zuko

    torch.distributions.Distribution.set_default_validate_args(before)
    return zuko
