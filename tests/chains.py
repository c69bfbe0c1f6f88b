"""A hidden Markov chain as a user may write it, for tests: one observed site with the method ``chain_logits``."""

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from scipy.special import logsumexp


class NormalChain(dist.TorchDistribution):
    """Normal emissions around the locations of K states; ``seen`` (*batch, T) masks steps."""

    arg_constraints = {}
    support = constraints.real_vector

    def __init__(self, initial, transition, loc, num_steps, seen=None, validate_args=None):
        self.initial, self.transition, self.loc, self.seen = initial, transition, loc, seen
        batch = torch.broadcast_shapes(initial.shape[:-1], () if seen is None else seen.shape[:-1])
        super().__init__(batch, torch.Size([num_steps]), validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        initial = self.initial.expand(*batch_shape, self.initial.shape[-1])
        seen = None if self.seen is None else self.seen.expand(*batch_shape, self.seen.shape[-1])
        return NormalChain(initial, self.transition, self.loc, self.event_shape[0], seen, validate_args=False)

    def chain_logits(self, value):
        observation = dist.Normal(self.loc, 1.0).log_prob(value.unsqueeze(-1))
        if self.seen is not None:
            observation = torch.where(self.seen.unsqueeze(-1), observation, 0.0)
        return self.initial.log(), self.transition.log().unsqueeze(-3), observation

    def log_prob(self, value):
        initial, transition, observation = self.chain_logits(value)
        alpha = initial + observation[..., 0, :]
        for t in range(1, value.shape[-1]):
            alpha = torch.logsumexp(alpha.unsqueeze(-1) + transition[..., 0, :, :], -2) + observation[..., t, :]
        return torch.logsumexp(alpha, -1)

    def sample(self, sample_shape=torch.Size()):  # noqa: B008
        shape = torch.Size(sample_shape) + self.batch_shape
        state = dist.Categorical(self.initial).expand(shape).sample()
        values = []
        for _ in range(self.event_shape[0]):
            values.append(torch.normal(self.loc[state], 1.0))
            state = dist.Categorical(self.transition[state]).sample()
        return torch.stack(values, -1)


def _parameters():
    with pyro.plate("state", 2):
        transition = pyro.sample("transition", dist.Dirichlet(torch.tensor([2.0, 2.0])))
        loc = pyro.sample("loc", dist.Normal(torch.tensor([-1.0, 1.0]), 0.5))
    return torch.tensor([0.5, 0.5]), transition, loc


def chain_model(y):
    """One series, one site."""
    initial, transition, loc = _parameters()
    pyro.sample("y", NormalChain(initial, transition, loc, len(y)), obs=y)


def sequences_model(y, seen):
    """Several series, masked to a common length."""
    initial, transition, loc = _parameters()
    with pyro.plate("sequence", len(y)):
        pyro.sample("y", NormalChain(initial, transition, loc, y.shape[1], seen), obs=y)


def loop_model(y):
    """The same series as a loop over enumerated states."""
    initial, transition, loc = _parameters()
    for t in pyro.markov(range(len(y))):
        probabilities = initial if t == 0 else transition[state]  # noqa: F821
        state = pyro.sample(f"state_{t}", dist.Categorical(probabilities))
        pyro.sample(f"y_{t}", dist.Normal(loc[state], 1.0), obs=y[t])


def factor_model(y):
    """The same series, its states summed out by hand."""
    initial, transition, loc = _parameters()
    terms = dist.Normal(loc, 1.0).log_prob(y.unsqueeze(-1))
    alpha = initial.log() + terms[0]
    for term in terms[1:]:
        alpha = torch.logsumexp(alpha.unsqueeze(-1) + transition.log(), -2) + term
    pyro.factor("y", torch.logsumexp(alpha, -1))


def by_enumeration(initial, transition, loc, y):
    """All paths (P, T) of one series, their probabilities given y, and the log likelihood: the definition itself."""
    states, steps = len(initial), len(y)
    paths = np.array(list(np.ndindex(*[states] * steps)))
    with np.errstate(divide="ignore"):
        logs = np.log(initial)[paths[:, 0]] + np.log(transition)[paths[:, :-1], paths[:, 1:]].sum(1)
    logs = logs - 0.5 * ((y - loc[paths]) ** 2 + np.log(2 * np.pi)).sum(1)
    total = logsumexp(logs)
    return paths, np.exp(logs - total), total


def series(num_steps, seed=0):
    """Draw a series that stays about ten steps in each of two states."""
    generator = np.random.default_rng(seed)
    moves = generator.random(num_steps) < 0.1
    return (2.0 * (np.cumsum(moves) % 2) - 1.0) + generator.normal(size=num_steps)
