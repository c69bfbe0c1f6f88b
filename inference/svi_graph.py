"""An SVI step as a recorded graph: parameters and base noise go in, the loss and its gradients come out.

Pyro's estimator runs as it is while the recorder watches, its backward pass included. So any ELBO and any guide can be
recorded whose steps differ only in the values of the parameters and in the random numbers drawn.
"""

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pyro
import pyro.util
import torch
from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch.distributions import lowrank_multivariate_normal
from torch.fx import GraphModule, Interpreter, Node
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from inference.density import VERIFY_POINTS, VERIFY_TOLERANCE
from inference.graph import random_nodes, record
from inference.objectives import StickingTheLanding
from inference.random_operations import BATCHABLE_DRAWS, categorical
from inference.simplify import simplify

# Verification moves every unconstrained parameter by this standard deviation, so that a value mistaken for a constant
# shows, and the guide stays where it makes sense.
VERIFY_RADIUS = 0.1
# Base noise is drawn for many steps at once: at most this many numbers (float64: 8 MB), and this many steps.
MAX_NOISE_NUMBERS, MAX_NOISE_STEPS = 2**20, 4096

# Estimators whose loss and gradient are means over particles, so that one particle is recorded and run repeatedly.
_MEANS = (Trace_ELBO, TraceMeanField_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, StickingTheLanding)
_aten = torch.ops.aten
# Draws of reparameterised distributions that depend on parameters; they stay in the graph.
_IN_GRAPH = {_aten._standard_gamma, _aten._sample_dirichlet}


class UntraceableError(Exception):
    """Why a step cannot be recorded, in words for the user."""


@dataclass(frozen=True, eq=False)
class Noise:
    """The base noise of one draw: its shape in one run of the graph, and how to draw it for many (num, *shape).

    ``normal``: whether its numbers are independent standard normal ones.
    """

    shape: torch.Size
    dtype: torch.dtype
    draw: Callable[[int], torch.Tensor]
    normal: bool = False


@dataclass(frozen=True, eq=False)
class StepGraph:
    """A recorded and verified step; made by `record_step`.

    Attributes
    ----------
    graph
        ``(*params, *noise) -> (loss, *gradients)``, for one particle.
    params
        The unconstrained leaf tensors of the parameter store that move.
    noise
        What each noise input is; empty where draws depend on parameters, which then stay in the graph.
    particles
        Runs of the graph per step, over which loss and gradients are averaged.
    """

    graph: GraphModule
    params: tuple[torch.Tensor, ...]
    noise: tuple[Noise, ...]
    particles: int

    @property
    def runs(self) -> range:
        """Numbers the runs of the graph in one step."""
        return range(self.particles)

    @property
    def draws_inside(self) -> bool:
        """Whether the graph itself draws random numbers."""
        return bool(random_nodes(self.graph))

    def evaluate(self, rows: list[tuple[torch.Tensor, ...]]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Loss and gradients of a step, given the noise inputs of each of its particles."""
        with torch.no_grad():
            runs = [self.graph(*self.params, *row) for row in rows]
            if len(runs) > 1:
                runs = [tuple(torch.stack(parts).mean(0) for parts in zip(*runs, strict=True))]
        loss, *gradients = runs[0]
        return loss, gradients

    def examples(self) -> list[tuple[torch.Tensor, ...]]:
        """Give inputs for the graph: the parameters as they are, then near by, and draws of the noise."""
        return [
            (
                *(p.detach() + radius * torch.randn_like(p) for p in self.params),
                *(noise.draw(1)[0] for noise in self.noise),
            )
            for radius in [0.0] + [VERIFY_RADIUS] * (VERIFY_POINTS - 1)
        ]


class NoiseStream:
    """Base noise for step after step.

    It is drawn in blocks whose size depends on the graph and on the number of steps alone, so that equal seeds give
    equal numbers however many steps are taken at once.
    """

    def __init__(self, recorded: StepGraph, num_steps: int) -> None:
        numbers = sum(noise.shape.numel() for noise in recorded.noise) * recorded.particles
        self._recorded, self._left = recorded, num_steps
        self._most = max(1, min(MAX_NOISE_NUMBERS // max(numbers, 1), MAX_NOISE_STEPS))
        self._block: tuple[torch.Tensor, ...] = ()
        self._used = self._size = 0

    def take(self, most: int) -> tuple[int, tuple[torch.Tensor, ...]]:
        """Give noise for up to ``most`` steps: how many, and one tensor (steps * particles, *shape) per input."""
        particles = self._recorded.particles
        if self._used == self._size:
            self._used, self._size = 0, max(1, min(self._most, self._left))
            self._block = tuple(noise.draw(self._size * particles) for noise in self._recorded.noise)
        num = min(most, self._size - self._used)
        rows = slice(self._used * particles, (self._used + num) * particles)
        self._used, self._left = self._used + num, self._left - num
        return num, tuple(part[rows] for part in self._block)


def record_step(loss: ELBO, model: Callable, guide: Callable, data: Mapping[str, Any]) -> StepGraph:
    """Record a step of ``loss`` at the parameters in the store, and check it against Pyro at a few others.

    The random streams and the parameters are left as they are.

    Raises
    ------
    UntraceableError
        A subsampled plate, a guide site that is not reparameterised, or random numbers that are no base noise.
    Exception
        Whatever recording raises, and `ArithmeticError` where the graph does not give Pyro's numbers.
    """
    loss, particles = one_particle(loss)
    recorded = _record(lambda: loss.loss_and_grads(model, guide, **data), [()], _Inspect(), lift=True)
    return replace(recorded, particles=particles)


def record_batch_step(
    step: Callable[..., Any], examples: Sequence[tuple[torch.Tensor, ...]], *, particles: int, plates: tuple[str, ...]
) -> StepGraph:
    """Record a step whose data are inputs, too: the graph is ``(*params, *inputs) -> (loss, *gradients)``.

    Random numbers stay in the graph, and come from torch's own stream.

    Parameters
    ----------
    step
        Takes inputs, leaves gradients in the parameters and returns the loss of one particle.
    examples
        Inputs, at the first of which it is recorded. At all of them it is checked.
    particles
        Runs of the graph per step.
    plates
        Plates that may be subsamples, since their rows are inputs.

    Raises
    ------
    Exception
        As `record_step`.
    """
    return replace(_record(step, examples, _Inspect(plates), lift=False), particles=particles)


def one_particle(loss: ELBO) -> tuple[ELBO, int]:
    """Give a loss of one particle, and over how many runs of it to average; itself and 1 where it is no average."""
    if type(loss) not in _MEANS or loss.vectorize_particles:
        return loss, 1
    single = copy.copy(loss)
    single.num_particles = 1
    return single, loss.num_particles


def _record(
    step: Callable[..., Any], examples: Sequence[tuple[torch.Tensor, ...]], seen: "_Inspect", *, lift: bool
) -> StepGraph:
    with torch.random.fork_rng(), warnings.catch_warnings(), pyro.validation_enabled(False):
        warnings.simplefilter("ignore")  # of NaN, at points that were only tried
        try:
            with seen:
                step(*examples[0])
            # One may have two names.
            params = tuple({id(p): p for p in seen.params.values() if p.grad is not None}.values())
        finally:
            _clear(seen.params.values())
        if not params:
            raise UntraceableError("no parameter has a gradient")

        def recorded_step(*arguments: torch.Tensor) -> tuple[torch.Tensor, ...]:
            with _Pure(params) as pure:
                return step(*arguments[len(params) :]), *pure.gradients

        with _pure_operations():
            # The recorder follows the very tensors it is given, so the store's own are the inputs.
            graph = record(recorded_step, *params, *examples[0])
        if not lift:
            simplify(graph, *params, *examples[0])
        noise = _lift(graph, params) if lift else ()
        recorded = StepGraph(graph, params, noise, 1)
        _verify(recorded, step, examples)
    return recorded


def _clear(params: Any) -> None:
    for p in params:
        p.grad = None


class _Inspect(Messenger):
    """Collects the parameters of a step, and refuses what changes from step to step or has no pathwise gradient."""

    def __init__(self, batched: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.batched = batched
        self.params: dict[str, torch.Tensor] = {}
        self._known: set[str] = set()

    def _pyro_post_param(self, msg: dict) -> None:
        self.params[msg["name"]] = msg["value"].unconstrained()

    def _pyro_post_sample(self, msg: dict) -> None:
        for frame in msg["cond_indep_stack"]:
            if frame.full_size and frame.size < frame.full_size and frame.name not in self.batched:
                raise UntraceableError(f"plate '{frame.name}' is subsampled")
        if msg["is_observed"] or isinstance(msg["fn"], _Subsample) or msg["name"] in self._known:
            return
        self._known.add(msg["name"])  # the guide runs before the model, whose distribution does not matter
        if not (getattr(msg["fn"], "has_rsample", False) or msg["infer"].get("enumerate")):
            raise UntraceableError(f"site '{msg['name']}' of the guide is not reparameterised")


class _Pure(TorchFunctionMode):
    """Keeps in the graph what an estimator takes out of it: losses read as numbers, and gradients left in ``grad``."""

    def __init__(self, params: tuple[torch.Tensor, ...]) -> None:
        super().__init__()
        self.params = params
        self.gradients: list[torch.Tensor] = []

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.item:
            try:
                return func(*args)
            except NotImplementedError:  # it follows from parameters or random numbers
                return args[0].detach()
        if func is torch.Tensor.backward:
            retain = kwargs.get("retain_graph")
            new = torch.autograd.grad(args[0], self.params, retain_graph=retain, materialize_grads=True)
            self.gradients = [a + b for a, b in zip(self.gradients, new, strict=True)] if self.gradients else list(new)
            return None
        return func(*args, **kwargs)


@contextmanager
def _pure_operations() -> Iterator[None]:
    """Replace functions of Pyro and torch that read or overwrite values by some without such side effects."""

    def capacitance_tril(W: torch.Tensor, D: torch.Tensor) -> torch.Tensor:
        capacitance = torch.matmul(W.mT / D.unsqueeze(-2), W)
        return torch.linalg.cholesky(capacitance + torch.eye(W.shape[-1], dtype=W.dtype))

    replaced = (
        (pyro.util, "torch_isnan", lambda _: False),  # asked in order to warn
        (lowrank_multivariate_normal, "_batch_capacitance_tril", capacitance_tril),
    )
    originals = [getattr(module, name) for module, name, _ in replaced]
    for module, name, function in replaced:
        setattr(module, name, function)
    try:
        yield
    finally:
        for (module, name, _), original in zip(replaced, originals, strict=True):
            setattr(module, name, original)


def _lift(graph: GraphModule, params: tuple[torch.Tensor, ...]) -> tuple[Noise, ...]:
    """Turn draws of base noise into inputs of the graph (in place); leave all where one depends on parameters."""
    drawn = random_nodes(graph)
    results = _Results(graph, drawn)
    with torch.no_grad():
        results.run(*params)
    noise = [_noise(node, results.values[node]) for node in drawn]
    if None in noise:
        return ()
    first = next(node for node in graph.graph.nodes if node.op != "placeholder")
    for i, node in enumerate(drawn):
        with graph.graph.inserting_before(first):
            node.replace_all_uses_with(graph.graph.placeholder(f"noise_{i}"))
        if node is not first:
            graph.graph.erase_node(node)
    if first in drawn:
        graph.graph.erase_node(first)
    graph.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    graph.recompile()
    return tuple(noise)


class _Results(Interpreter):
    """Keeps the results of chosen nodes."""

    def __init__(self, graph: GraphModule, chosen: list[Node]) -> None:
        super().__init__(graph)
        self.chosen, self.values = set(chosen), {}

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if n in self.chosen:
            self.values[n] = result
        return result


def _noise(node: Node, result: torch.Tensor) -> Noise | None:
    """Say how to draw a node's numbers in bulk; None where they depend on parameters."""
    shape, dtype = result.shape, result.dtype
    packet = getattr(node.target, "overloadpacket", None)
    if node.target in BATCHABLE_DRAWS.values():
        if node.target is categorical or any(isinstance(a, Node) for a in node.args[1:]):
            return None
        normal = node.target is BATCHABLE_DRAWS[_aten.normal_] and tuple(node.args[1:]) in ((), (0.0,), (0.0, 1.0))
        return Noise(shape, dtype, lambda num: node.target(result.new_empty(num, *shape), *node.args[1:]), normal)
    if packet in (_aten.randn, _aten.randn_like):
        return Noise(shape, dtype, lambda num: torch.randn(num, *shape, dtype=dtype), normal=True)
    if packet in (_aten.rand, _aten.rand_like):
        return Noise(shape, dtype, lambda num: torch.rand(num, *shape, dtype=dtype))
    if packet in _IN_GRAPH:
        return None
    raise UntraceableError(
        f"random numbers of a kind that is no base noise ({packet.__name__ if packet else node.target})"
    )


def _verify(recorded: StepGraph, step: Callable[..., Any], examples: Sequence[tuple[torch.Tensor, ...]]) -> None:
    """Compare the graph with Pyro at the start and at points around it, with equal random numbers."""
    params = recorded.params
    before = [p.detach().clone() for p in params]
    try:
        for seed in range(VERIFY_POINTS):
            torch.manual_seed(seed)
            inputs = examples[seed % len(examples)]
            if seed:
                for p, start in zip(params, before, strict=True):
                    p.data.copy_(start + VERIFY_RADIUS * torch.randn_like(start))
            torch.manual_seed(VERIFY_POINTS + seed)
            with _SameDraws():
                expected = torch.as_tensor(float(step(*inputs))).to(params[0])
            expected_gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in params]
            _clear(params)
            torch.manual_seed(VERIFY_POINTS + seed)
            loss, gradients = recorded.evaluate([(*inputs, *(noise.draw(1)[0] for noise in recorded.noise))])
            if not (torch.isfinite(expected) or seed):
                raise UntraceableError("the loss is not finite at the start")
            check_same([expected, *expected_gradients], [loss, *gradients])
    finally:
        for p, start in zip(params, before, strict=True):
            p.data.copy_(start)
        _clear(params)


def check_same(expected: Iterable[torch.Tensor], got: Iterable[torch.Tensor]) -> None:
    """Compare loss and gradients; raise `ArithmeticError` where they differ by more than rounding."""
    for e, g in zip(expected, got, strict=True):
        scale = e.abs().max() + 1.0
        if not torch.isclose(g / scale, e / scale, rtol=0, atol=VERIFY_TOLERANCE[e.dtype], equal_nan=True).all():
            raise ArithmeticError("loss or gradient differ from those of eager Pyro")


class _SameDraws(TorchDispatchMode):
    """Draws as recorded graphs do, where torch would use another algorithm for the same distribution."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # skipping it would import torch's compiler, for seconds

    def __torch_dispatch__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        draw = BATCHABLE_DRAWS.get(func.overloadpacket)
        if draw is None:
            return func(*args, **(kwargs or {}))
        result = draw(*args)
        return args[0].copy_(result) if func._schema.is_mutable else result
