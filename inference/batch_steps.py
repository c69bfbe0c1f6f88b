"""The loss of a mini-batch and its gradients: by a graph recorded once for each size of a batch, or by Pyro itself."""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import pyro
import torch
from pyro.infer import ELBO
from torch.overrides import TorchFunctionMode

from inference.batches import Batches, MiniBatch, example_batches
from inference.errors import one_line
from inference.svi_graph import StepGraph, UntraceableError, one_particle, record_batch_step

logger = logging.getLogger(__name__)

# Weights of the KL at which a recorded step is checked: it must not be taken for a constant.
_KL_WEIGHTS = (0.5, 1.0)


class BatchSteps:
    """Loss and gradients of one mini-batch after another.

    Parameters
    ----------
    loss, model, guide
        The objective.
    batches
        What is cut.
    handler
        Scales the log densities of a batch, and weighs the KL.
    mixed_precision
        Multiply matrices in bfloat16.
    weighs_kl
        Whether steps give a weight of the KL.
    eager
        Let Pyro take every step.
    """

    def __init__(
        self,
        loss: ELBO,
        model: Callable,
        guide: Callable,
        batches: Batches,
        handler: MiniBatch,
        *,
        mixed_precision: bool,
        weighs_kl: bool,
        eager: bool,
    ) -> None:
        self.loss, self.model, self.guide, self.handler = loss, model, guide, handler
        self.names, self.data = batches.tensors, batches.data
        device = batches.data[self.names[0]].device.type if self.names else "cpu"
        self.precision = (lambda: bfloat16_products(device)) if mixed_precision else nullcontext
        self.reason = ""
        self._graphs: dict[int, StepGraph] = {}
        self.params = self._moving(batches)
        for size in () if eager else batches.sizes:
            self._record(batches, size, weighs_kl=weighs_kl)

    @property
    def name(self) -> str:
        """What takes the steps."""
        return "recorded graph" if self._graphs else "eager Pyro"

    def run(self, batch: Mapping[str, Any], kl_weight: float | None) -> torch.Tensor:
        """Give the loss (a scalar) at a batch, and leave its gradients in the parameters."""
        graph = self._graphs.get(len(batch[self.names[0]])) if self.names else None
        if graph is None:
            self.handler.kl_weight = kl_weight
            return torch.as_tensor(self._eager(self.loss, batch))
        inputs = tuple(batch[name] for name in self.names)
        if kl_weight is not None:
            inputs += (torch.tensor(kl_weight, dtype=self.params[0].dtype, device=self.params[0].device),)
        loss, gradients = graph.evaluate([inputs] * graph.particles)
        for p, gradient in zip(graph.params, gradients, strict=True):
            p.grad = gradient.contiguous()
        return loss

    def evaluate(self, batch: Mapping[str, Any], kl_weight: float | None) -> float:
        """Give the loss at a batch, without gradients."""
        self.handler.kl_weight = kl_weight
        with torch.no_grad(), self.precision(), pyro.validation_enabled(False), self.handler:
            return float(self.loss.loss(self.model, self.guide, **batch))

    def _eager(self, loss: ELBO, batch: Mapping[str, Any]) -> Any:
        # Validated once, when the model was read.
        with self.precision(), pyro.validation_enabled(False), self.handler, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Encountered NaN")  # the trainer says where
            return loss.loss_and_grads(self.model, self.guide, **batch)

    def _moving(self, batches: Batches) -> list[torch.Tensor]:
        """List the unconstrained parameters that have a gradient, in the order of the store."""
        with torch.random.fork_rng():
            self.run(batches.take(batches.rows[: batches.size]), None)
        named = dict(pyro.get_param_store().named_parameters())
        moving = {id(p): p for p in named.values() if p.grad is not None}
        for p in named.values():
            p.grad = None
        return list(moving.values())

    def _record(self, batches: Batches, size: int, *, weighs_kl: bool) -> None:
        single, particles = one_particle(self.loss)

        def step(*inputs: torch.Tensor) -> Any:
            if weighs_kl:
                *inputs, self.handler.kl_weight = inputs
            return self._eager(single, {**self.data, **dict(zip(self.names, inputs, strict=True))})

        examples = [tuple(batch[name] for name in self.names) for batch in example_batches(batches, size)]
        if weighs_kl:
            like = self.params[0]
            weights = (torch.tensor(w, dtype=like.dtype, device=like.device) for w in _KL_WEIGHTS)
            examples = [(*batch, weight) for batch, weight in zip(examples, weights, strict=True)]
        try:
            if len(self.names) < len(batches.names):
                raise UntraceableError("rows of a list")
            graph = record_batch_step(step, examples, particles=particles, plates=batches.plates)
            if {id(p) for p in graph.params} != {id(p) for p in self.params}:
                raise UntraceableError("other parameters move than in the first step")
            self._graphs[size] = graph
        except Exception as error:  # recording can fail in as many ways as models can be written
            said = one_line(error)
            said = said if isinstance(error, UntraceableError) else f"{type(error).__name__}: {said}"
            self.reason = f"no recorded graph for batches of {size}, so eager Pyro runs them ({said})"
            logger.info(self.reason)
        finally:
            self.handler.kl_weight = None


@contextmanager
def bfloat16_products(device: str) -> Iterator[None]:
    """Multiply matrices and convolve in bfloat16; everything else stays in float32, log densities above all."""
    with torch.autocast(device, dtype=torch.bfloat16), _FloatResults():
        yield


class _FloatResults(TorchFunctionMode):
    """Gives results in bfloat16 as float32."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        return result.float() if isinstance(result, torch.Tensor) and result.dtype == torch.bfloat16 else result
