"""A hidden path of normal steps whose means and scales any function gives: the latent of a deep Markov model."""

import math
from collections.abc import Callable

import torch
from pyro.distributions import TorchDistribution, constraints
from torch.distributions.kl import register_kl

# Mean and scale of a step, from the states before it (..., L) and from the context of the step (..., C), if any.
Step = Callable[..., tuple[torch.Tensor, torch.Tensor]]
_HALF_LOG_2_PI = 0.5 * math.log(2 * math.pi)


class MarkovPath(TorchDistribution):
    """A path of vectors, each normal given the one before: ``z[t] ~ Normal(*step(z[t - 1], context[t]))``.

    A draw goes step by step; the density of a path that is given takes all its steps at once. Beyond the end of a
    shorter sequence the path is standard normal noise, so that the density stays proper.

    Parameters
    ----------
    step
        Gives mean and scale (..., L) of states from those before (..., L) and, if there is a context, from that of
        their steps, (..., C), as second argument. It works row by row.
    first
        What stands before the first step, (L,).
    num_steps
        Length T of the path.
    context
        (*batch, T, C).
    seen
        Booleans (sequences, T): which steps lie within each of several sequences, all by default. A sequence ends once.
    """

    arg_constraints = {}
    support = constraints.independent(constraints.real, 2)
    has_rsample = True

    def __init__(
        self,
        step: Step,
        first: torch.Tensor,
        num_steps: int,
        *,
        context: torch.Tensor | None = None,
        seen: torch.Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.step, self.first, self.num_steps, self.context, self.seen = step, first, num_steps, context, seen
        self._drawn: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
        if seen is not None and (seen.dim() != 2 or seen.shape[-1] != num_steps):
            raise ValueError(f"seen: expected shape (sequences, {num_steps}), got {tuple(seen.shape)}.")
        batch = torch.broadcast_shapes(
            *(() if context is None else [context.shape[:-2]]), *(() if seen is None else [seen.shape[:-1]])
        )
        super().__init__(batch, torch.Size([num_steps, first.shape[-1]]), validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: "MarkovPath | None" = None) -> "MarkovPath":
        """Repeat the distribution to a larger batch shape; context and steps seen broadcast."""
        new = self._get_checked_instance(MarkovPath, _instance)
        for name in ("step", "first", "num_steps", "context", "seen"):
            setattr(new, name, getattr(self, name))
        new._drawn = None
        TorchDistribution.__init__(new, torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self.__dict__.get("_validate_args")
        return new

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> torch.Tensor:  # noqa: B008
        """Draw paths, shape ``sample_shape + batch_shape + (T, L)``, differentiable with respect to what made them."""
        shape = torch.Size(sample_shape) + self.batch_shape
        noise = torch.randn(*shape, *self.event_shape, dtype=self.first.dtype)
        contexts = None if self.context is None else self.context.unbind(-2)
        last = self.num_steps if self.seen is None else int(self.seen.sum(-1).max())
        state, states, locs, scales = self.first.expand(*shape, -1), [], [], []
        for t, shock in enumerate(noise.unbind(-2)[:last]):
            loc, scale = self.step(state) if contexts is None else self.step(state, contexts[t])
            state = torch.addcmul(loc, scale, shock)
            states.append(state)
            locs.append(loc)
            scales.append(scale)
        path = torch.stack(states, -2)
        if self.seen is not None:
            path = torch.cat([path, noise[..., last:, :]], -2)
            path = torch.where(self.seen.unsqueeze(-1), path, noise)
        self._drawn = path, torch.stack(locs, -2), torch.stack(scales, -2)
        return path

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Log density of paths (..., T, L)."""
        if self._validate_args:
            self._validate_sample(value)
        rows = SeenRows(value, self.seen)
        loc, scale = self.steps_of(value, rows)
        inside = -(0.5 * ((rows.of(value) - loc) / scale).square() + scale.log() + _HALF_LOG_2_PI).sum(-1)
        total = rows.summed(inside)
        if self.seen is None:
            return total
        beyond = -(0.5 * value.square() + _HALF_LOG_2_PI).sum(-1)
        return total + torch.where(self.seen, torch.zeros_like(beyond), beyond).sum(-1)

    def steps_of(self, path: torch.Tensor, rows: "SeenRows") -> tuple[torch.Tensor, torch.Tensor]:
        """Give mean and scale of every step that is seen of a path (..., T, L), as ``rows`` lays them out."""
        first = self.first.expand(*path.shape[:-2], 1, -1)
        before = rows.of(torch.cat([first, path[..., :-1, :]], -2))
        return self.step(before) if self.context is None else self.step(before, rows.of(self.context))

    def drawn_steps(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Give the path that was drawn last, and mean and scale of its steps; the latter up to the longest sequence."""
        if self._drawn is None:
            self.rsample()
        return self._drawn


class SeenRows:
    """The steps within sequences, as rows (..., n, L), so that nothing is computed for what is padded."""

    def __init__(self, path: torch.Tensor, seen: torch.Tensor | None) -> None:
        self._batch = path.shape[:-2]
        self._index = None
        if seen is not None:
            self._steps = path.shape[-2]
            self._index = seen.expand(path.shape[-3], -1).reshape(-1).nonzero().squeeze(-1)

    def of(self, values: torch.Tensor) -> torch.Tensor:
        """Take the rows of values (..., sequences, T, C), all where every step is seen."""
        return values if self._index is None else values.flatten(-3, -2).index_select(-2, self._index)

    def spread(self, rows: torch.Tensor) -> torch.Tensor:
        """Put rows (..., n, C) back among zeros: (..., sequences, T, C)."""
        if self._index is None:
            return rows
        places = self._batch[-1] * self._steps
        full = rows.new_zeros(*rows.shape[:-2], places, rows.shape[-1]).index_copy(-2, self._index, rows)
        return full.unflatten(-2, (self._batch[-1], self._steps))

    def summed(self, rows: torch.Tensor) -> torch.Tensor:
        """Add up one number for each row to one for each sequence."""
        if self._index is None:
            return rows.sum(-1)
        sequence = self._index.div(self._steps, rounding_mode="floor")
        return rows.new_zeros(*rows.shape[:-1], self._batch[-1]).index_add(-1, sequence, rows)


@register_kl(MarkovPath, MarkovPath)
def kl_of_paths(q: MarkovPath, p: MarkovPath) -> torch.Tensor:
    """Estimate KL(q || p) from the path that ``q`` drew last, each step's share in closed form.

    By the chain rule it is the expectation, over the path up to t - 1, of the sum over t of the KL between two normals
    (Krishnan, Shalit & Sontag 2017, AAAI, equation 6). One path makes it an unbiased estimate with pathwise gradients;
    for a path of one step it is exact.
    """
    path, loc, scale = q.drawn_steps()
    if q.seen is not None:
        pad = (0, 0, 0, path.shape[-2] - loc.shape[-2])
        loc, scale = torch.nn.functional.pad(loc, pad), torch.nn.functional.pad(scale, pad)
    rows = SeenRows(path, q.seen)
    loc, scale = rows.of(loc), rows.of(scale)
    other_loc, other_scale = p.steps_of(path, rows)
    variance = (scale / other_scale).square()
    distance = ((loc - other_loc) / other_scale).square()
    return rows.summed(0.5 * (variance + distance - 1 - variance.log()).sum(-1))
