"""A hidden Markov chain as one distribution over a whole sequence, its states summed out."""

import torch
from pyro.distributions import DiscreteHMM, TorchDistribution
from pyro.distributions import constraints as pyro_constraints
from torch.distributions import constraints

from ppl_models.hmm_emissions import check_values, filled, is_missing, state_log_probs, state_values

# Rows of probabilities may miss one by rounding: float32 sums over tens of states.
_ROUNDING = 1e-3


# Pyro multiplies matrices pairwise, in O(T K^3), scaled by the largest numbers of rows and columns. Where a state can
# hardly follow another a product loses what is far below these; so it is used for long chains of a few states only,
# where a recursion step by step takes longer, and no transition is rarer than this (in logarithms): two of them, on
# either side of a product, are still far above the smallest number there is. While `inference` records a model it puts
# an operator of its own in the place of Pyro's method, which has no such limits.
_PYROS_LOG_PROB = DiscreteHMM.log_prob
_RAREST = {torch.float64: -150.0, torch.float32: -20.0}
_LONG, _FEW = 1000, 8


def _step_by_step(first: torch.Tensor, maps: torch.Tensor, observation: torch.Tensor) -> torch.Tensor:
    """Forward recursion in logarithms (Rabiner 1989, equation 20), from (*batch, K) to (*batch,)."""
    # Taken apart at once: the gradient of each single step out of T would be an array of T.
    steps = maps.unbind(-3) if maps.shape[-3] > 1 else [maps.squeeze(-3)] * observation.shape[-2]
    weight = first
    for step, here in zip(steps, observation.unbind(-2), strict=True):
        weight = torch.logsumexp(weight.unsqueeze(-1) + step, -2) + here
    return weight.logsumexp(-1)


class _OrMissing(constraints.Constraint):
    """Values of another constraint, entries that are NaN, and anything at steps that are masked."""

    def __init__(self, base: constraints.Constraint, emission: TorchDistribution, mask: torch.Tensor | None) -> None:
        self._base, self._emission, self._mask = base, emission, mask

    @property
    def is_discrete(self) -> bool:
        return self._base.is_discrete

    @property
    def event_dim(self) -> int:
        return self._base.event_dim

    def check(self, value: torch.Tensor) -> torch.Tensor:
        return self._base.check(filled(self._emission, value, self._mask))


class _Given(TorchDistribution):
    """Stands where `DiscreteHMM` wants emissions, and gives log probabilities that are known already."""

    arg_constraints = {}
    support = constraints.real

    def __init__(self, log_probs: torch.Tensor) -> None:
        self._log_probs = log_probs
        super().__init__(log_probs.shape, validate_args=False)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        return self._log_probs


class HiddenMarkov(TorchDistribution):
    """A sequence of values, each emitted by the hidden state of a Markov chain, whose paths are summed out.

    The first state has the distribution ``initial`` and emits the first value. (Pyro's `DiscreteHMM` makes a transition
    before its first value.) The density of a sequence is the sum over all paths of states, by the forward recursion
    (Rabiner 1989, section III.A), in O(T K^2) where ``inference`` records the model.

    A value may hold NaN, which is marginalised: such an entry, or a whole step of them, says nothing, while the chain
    moves on.

    Parameters
    ----------
    initial_logits
        Log probabilities of the first state, shape (*batch, K).
    transition_logits
        Log probabilities of the next state (column) given this one (row), shape (K, K) or (*batch, 1, K, K) where all
        steps are alike, (*batch, T - 1, K, K) where they are not.
    emission
        Distribution of a value given each state, of batch shape (*batch, 1, K) or (*batch, T, K); or an object with
        the methods of `ppl_models.hmm_emissions.Autoregression`.
    num_steps
        Length T of a sequence.
    mask
        (*batch, T), false at steps without a value: those after the end of a sequence shorter than T, say. What stands
        there is ignored, and `sample` puts zeros there.

    Raises
    ------
    ValueError
        Sizes do not fit, rows are no probabilities, or (from `log_prob`) a value is none the emission can have.
    """

    arg_constraints = {}

    def __init__(
        self,
        initial_logits: torch.Tensor,
        transition_logits: torch.Tensor,
        emission: TorchDistribution,
        num_steps: int,
        *,
        mask: torch.Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if transition_logits.dim() == 2:
            transition_logits = transition_logits.unsqueeze(0)
        self.initial_logits, self.transition_logits = initial_logits, transition_logits
        self.emission, self.num_steps, self.mask = emission, num_steps, mask
        self._check_sizes()
        batches = [initial_logits.shape[:-1], transition_logits.shape[:-3], emission.batch_shape[:-2]]
        batch_shape = torch.broadcast_shapes(*batches, () if mask is None else mask.shape[:-1])
        super().__init__(batch_shape, torch.Size([num_steps, *emission.event_shape]), validate_args=validate_args)
        if self._validate_args:
            self._check_probabilities()

    @property
    def num_states(self) -> int:
        """Number K of hidden states."""
        return self.initial_logits.shape[-1]

    @pyro_constraints.dependent_property
    def support(self) -> constraints.Constraint:
        """Sequences of values that the emission can have, or NaN."""
        base = constraints.independent(self.emission.support, 1)
        return _OrMissing(base, self.emission, self.mask)

    def expand(self, batch_shape: torch.Size, _instance: "HiddenMarkov | None" = None) -> "HiddenMarkov":
        """Repeat the distribution to a larger batch shape; the parameters broadcast."""
        new = self._get_checked_instance(HiddenMarkov, _instance)
        for name in ("initial_logits", "transition_logits", "emission", "num_steps", "mask"):
            setattr(new, name, getattr(self, name))
        TorchDistribution.__init__(new, torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self.__dict__.get("_validate_args")
        return new

    def chain_logits(self, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Give the log probabilities of which each path of states takes its own.

        Parameters
        ----------
        value
            (*batch, T, *event).

        Returns
        -------
        tuple
            Of the first state (*batch, K); of each step from state (row) to state (column), (*batch, 1 or T - 1, K, K);
            of each step's value under each state (*batch, T, K), 0 where there is no value.
        """
        observation = state_log_probs(self.emission, filled(self.emission, value, self.mask), is_missing(value))
        if self.mask is not None:
            observation = torch.where(self.mask.unsqueeze(-1), observation, 0.0)
        batch = torch.broadcast_shapes(self.batch_shape, observation.shape[:-2])
        K = self.num_states
        return (
            self.initial_logits.expand(*batch, K),
            self.transition_logits.expand(*batch, -1, K, K),
            observation.expand(*batch, self.num_steps, K),
        )

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Log density of sequences (*batch, T, *event), shape (*batch,)."""
        if self._validate_args:
            self._validate_sample(value)
        initial, transition, observation = self.chain_logits(value)
        first = initial + observation[..., 0, :]
        if self.num_steps == 1:
            return first.logsumexp(-1)
        maps = self.transition_logits.expand(*first.shape[:-1], *self.transition_logits.shape[-3:])
        if DiscreteHMM.log_prob is _PYROS_LOG_PROB and not self._suits_a_product():
            return _step_by_step(first, maps, observation[..., 1:, :])
        # DiscreteHMM normalises its initial logits: what that takes away is added again.
        total = first.logsumexp(-1)
        first = torch.where(total.isneginf().unsqueeze(-1), 0.0, first)
        rest = DiscreteHMM(first, maps, _Given(observation[..., 1:, :]), validate_args=False)
        return total + rest.log_prob(value)

    def _suits_a_product(self) -> bool:
        if self.num_steps < _LONG or self.num_states > _FEW:
            return False
        rarest = _RAREST.get(self.transition_logits.dtype, 0.0)
        return bool((self.transition_logits > rarest).all())

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size = torch.Size()) -> torch.Tensor:  # noqa: B008
        """Draw sequences, shape ``sample_shape + batch_shape + (T, *event)``; zeros at masked steps."""
        return self.sample_with_states(sample_shape)[0]

    @torch.no_grad()
    def sample_with_states(
        self,
        sample_shape: torch.Size = torch.Size(),  # noqa: B008
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw sequences and the paths of states that emitted them, the latter of integer type without event dims."""
        shape = torch.Size(sample_shape) + self.batch_shape
        states = self._sample_states(shape)
        value = state_values(self.emission, states)
        if self.mask is not None:
            seen = self.mask.reshape(*self.mask.shape, *[1] * len(self.emission.event_shape))
            value = torch.where(seen, value, torch.zeros((), dtype=value.dtype))
        return value, states

    def _sample_states(self, shape: torch.Size) -> torch.Tensor:
        """Draw paths (*shape, T): each next state is where a uniform number falls in its row of cumulated sums."""
        K, homogeneous = self.num_states, self.transition_logits.shape[-3] == 1
        rows = self.transition_logits.exp().cumsum(-1)
        rows = rows.expand(*shape, *rows.shape[-3:]).flatten(0, -4) if shape else rows.unsqueeze(0)
        uniform = torch.rand(*shape, self.num_steps, dtype=rows.dtype).reshape(-1, self.num_steps, 1)
        first = self.initial_logits.exp().cumsum(-1).expand(*shape, K).reshape(-1, K)
        chain = torch.arange(len(first))
        states = [(first < uniform[:, 0] * first[:, -1:]).sum(-1)]
        for t in range(1, self.num_steps):
            row = rows[chain, 0 if homogeneous else t - 1, states[-1]]
            states.append((row < uniform[:, t] * row[:, -1:]).sum(-1))
        return torch.stack(states, -1).reshape(*shape, self.num_steps)

    def _validate_sample(self, value: torch.Tensor) -> None:
        if value.shape[-len(self.event_shape) :] != self.event_shape:
            raise ValueError(
                f"value: expected sequences of shape {tuple(self.event_shape)}, got an array of {tuple(value.shape)}."
            )
        check_values(self.emission, value, self.mask)

    def _check_sizes(self) -> None:
        K, steps = self.initial_logits.shape[-1], self.num_steps
        if steps < 1:
            raise ValueError(f"num_steps: expected a sequence of at least one step, got {steps}.")
        if K < 1:
            raise ValueError("initial_logits: expected at least one state, got none.")
        if self.transition_logits.shape[-2:] != (K, K) or self.transition_logits.shape[-3] not in (1, steps - 1):
            raise ValueError(
                f"transition_logits: expected shape (..., 1 or {steps - 1}, {K}, {K}) with {K} states and {steps} "
                f"steps, got {tuple(self.transition_logits.shape)}."
            )
        batch = tuple(self.emission.batch_shape)
        if len(batch) < 2 or batch[-1] not in (1, K) or batch[-2] not in (1, steps):
            raise ValueError(f"emission: expected batch shape (..., 1 or {steps}, {K}), got {batch}.")
        if self.mask is not None and (self.mask.dtype != torch.bool or self.mask.shape[-1] != steps):
            raise ValueError(
                f"mask: expected booleans of shape (..., {steps}), got {self.mask.dtype} of {tuple(self.mask.shape)}."
            )

    def _check_probabilities(self) -> None:
        for name in ("initial_logits", "transition_logits"):
            total = getattr(self, name).exp().sum(-1)
            if not ((total - 1).abs() < _ROUNDING).all():  # false for NaN
                raise ValueError(
                    f"{name}: expected the logarithms of probabilities that sum to one, got a row that sums to "
                    f"{total.reshape(-1)[(total - 1).abs().nan_to_num(torch.inf).argmax()].item():.6g}."
                )
