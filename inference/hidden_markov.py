"""Exact inference in hidden Markov chains whose logits are known: filter, smoother, sampler, most probable path.

Plain numpy on logits, many chains at once, one loop over time. Everything is in logarithms, so that impossible steps
(minus infinity, as in left-to-right chains) are exact and no chain is too long. The equations are those of Rabiner
(1989), sections III.A-B, and of Chib (1996) for the sampler.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

_LOWEST = np.finfo(np.float64).min  # instead of -inf, of which the difference would be NaN


@dataclass(frozen=True, eq=False)
class Chains:
    """Hidden Markov chains with observations, the chains in the last axis. Made by `Chains.of`.

    Attributes
    ----------
    initial
        (K, B), log probabilities of the first state.
    transition
        (1 or T - 1, K, K, B), of the next state (second axis of the two) given the last one.
    observation
        (T, K, B), log densities of what was observed at each step; 0 where nothing was.
    batch
        Shape of the chains, of size B.
    """

    initial: np.ndarray
    transition: np.ndarray
    observation: np.ndarray
    batch: tuple[int, ...]

    @classmethod
    def of(cls, initial: np.ndarray, transition: np.ndarray, observation: np.ndarray) -> "Chains":
        """Take logits (*batch, K), (*batch, 1 or T - 1, K, K) and (*batch, T, K), whose batch axes broadcast."""
        steps, states = observation.shape[-2:]
        batch = np.broadcast_shapes(initial.shape[:-1], transition.shape[:-3], observation.shape[:-2])

        def last(x: np.ndarray, event: Sequence[int]) -> np.ndarray:
            flat = np.broadcast_to(x, (*batch, *event)).reshape(math.prod(batch), *event)
            return np.ascontiguousarray(np.moveaxis(flat, 0, -1), dtype=np.float64)

        return cls(
            last(initial, (states,)),
            last(transition, (transition.shape[-3], states, states)),
            last(observation, (steps, states)),
            batch,
        )

    @property
    def num_steps(self) -> int:
        """Number of steps T."""
        return len(self.observation)

    def moved(self, step: int) -> np.ndarray:
        """Give the transition (K, K, B) out of a step."""
        return self.transition[step if len(self.transition) > 1 else 0]

    @cached_property
    def _forward(self) -> tuple[np.ndarray, np.ndarray]:
        """Log filtered probabilities (T, K, B), and log densities (T, B) of each step given those before."""
        alpha, top = np.empty_like(self.observation), np.empty((self.num_steps, self.observation.shape[-1]))
        current = self.initial
        with np.errstate(divide="ignore"):
            for t, logits in enumerate(self.observation):
                if t:
                    current = _log_sum(current[:, None] + self.moved(t - 1), 0)
                current = current + logits
                top[t] = current.max(0)
                current = current - np.maximum(top[t], _LOWEST)  # stays -inf where all is impossible
                alpha[t] = current
            rest = _log_sum(alpha, 1)
        possible = np.maximum(rest, _LOWEST)
        steps = top + rest
        steps[1:] -= np.where(np.isneginf(rest[:-1]), 0.0, rest[:-1])
        alpha -= possible[:, None]
        return alpha, steps

    @property
    def step_log_densities(self) -> np.ndarray:
        """Log density of each step given the steps before it, (*batch, T): log p(y_t | y_1 ... y_(t-1))."""
        return self._first(self._forward[1])

    @property
    def log_likelihood(self) -> np.ndarray:
        """Log density of each sequence, (*batch); -inf where it is impossible."""
        return self._forward[1].sum(0).reshape(self.batch)

    @property
    def filtered(self) -> np.ndarray:
        """State probabilities given the observations up to each step, (*batch, T, K); 0 after an impossible one."""
        return self._first(np.exp(self._forward[0]))

    @property
    def last_filtered(self) -> np.ndarray:
        """State probabilities of the last step given all observations, (K, B)."""
        return np.exp(self._forward[0][-1])

    @property
    def smoothed(self) -> np.ndarray:
        """State probabilities given all observations, (*batch, T, K); NaN where they are impossible together."""
        alpha = self._forward[0]
        result = np.empty_like(alpha)
        after = np.zeros_like(self.initial)
        with np.errstate(divide="ignore"):
            for t in range(self.num_steps - 1, -1, -1):
                result[t] = alpha[t] + after
                if t:
                    after = _log_sum(self.moved(t - 1) + (self.observation[t] + after), 1)
                    after -= np.maximum(after.max(0), _LOWEST)
            result -= np.maximum(result.max(1, keepdims=True), _LOWEST)
        np.exp(result, out=result)
        with np.errstate(invalid="ignore"):
            result /= result.sum(1, keepdims=True)
        return self._first(result)

    def sample(self, generator: np.random.Generator) -> np.ndarray:
        """Draw a state path for every chain from its exact distribution given the observations, (*batch, T)."""
        alpha = self._forward[0]
        columns = np.arange(alpha.shape[-1])
        states = np.empty((self.num_steps, len(columns)), dtype=np.int64)
        with np.errstate(invalid="ignore"):
            for t in range(self.num_steps - 1, -1, -1):
                logits = alpha[t]
                if t + 1 < self.num_steps:
                    logits = logits + self.moved(t)[:, states[t + 1], columns]
                states[t] = _draw(logits, generator.random(len(columns)))
        return self._first(states)

    @property
    def most_probable(self) -> np.ndarray:
        """The most probable state path of every chain, (*batch, T) (Viterbi 1967); of equal ones the lowest states."""
        columns = np.arange(self.observation.shape[-1])
        came_from = np.empty(self.observation.shape, dtype=np.min_scalar_type(len(self.initial)))
        best = self.initial + self.observation[0]
        for t in range(1, self.num_steps):
            arrivals = best[:, None] + self.moved(t - 1)
            came_from[t] = arrivals.argmax(0)
            best = arrivals.max(0) + self.observation[t]
        states = np.empty((self.num_steps, len(columns)), dtype=np.int64)
        states[-1] = best.argmax(0)
        for t in range(self.num_steps - 1, 0, -1):
            states[t - 1] = came_from[t, states[t], columns]
        return self._first(states)

    def _first(self, x: np.ndarray) -> np.ndarray:
        """Bring the chains to the front: (T, ..., B) to (*batch, T, ...)."""
        return np.moveaxis(x, -1, 0).reshape(*self.batch, *x.shape[:-1])


def _log_sum(x: np.ndarray, axis: int) -> np.ndarray:
    """Log of the sum of exponentials along an axis; -inf of nothing but -inf."""
    top = np.maximum(x.max(axis, keepdims=True), _LOWEST)
    return np.log(np.exp(x - top).sum(axis)) + top.squeeze(axis)


def _draw(logits: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Draw a state from logits (K, B) by inverting the distribution function; never one of probability zero."""
    cumulative = np.exp(logits - np.maximum(logits.max(0), _LOWEST)).cumsum(0)
    return (cumulative <= uniform * cumulative[-1]).sum(0).clip(max=len(logits) - 1)
