"""A Pyro model and its data as one flat, unconstrained log density, with gradient, one point or many at a time."""

import logging
from collections.abc import Callable, Hashable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from torch.distributions import biject_to
from torch.fx import GraphModule

from inference.devices import moved
from inference.errors import InputError, one_line
from inference.fingerprint import Unknown, fingerprint
from inference.graph import batched, loop, python_seconds, random_nodes, second, widest
from inference.mapped import map_draws
from inference.native import NativeFunction, NoCompiler, NotWorthIt, compile_graph
from inference.prototype import evaluator_of, prototype_of
from inference.recorded import Inputs, bound_graph
from inference.sites import START_RADIUS, Sites, flat_labels
from inference.supports import constrain_all, fixed_transforms, unconstrain_all
from inference.unconstrain import ConstrainMessenger, UnconstrainMessenger

logger = logging.getLogger(__name__)

# A recorded graph must give eager Pyro's value and gradient at this many random points, to this relative difference
# (float64; float32 has about 7 digits, of which sums over data lose some).
VERIFY_POINTS = 3
# Where one run of the graph takes torch so many seconds, at this many: it is large for its data, not for its formulas.
DEAR_SECONDS, DEAR_POINTS = 0.02, 2
# Values of such a density for which they are compiled without the gradient.
WORTH_VALUES = 200
VERIFY_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
# A recording that was made for other data must do better, since it repeats Pyro's own operations: the model may have
# changed in a way that is small beside a sum over many data.
KEPT_TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-5}
# Points tried per chain before the model is declared to have no finite starting point (Stan and Pyro use 100, too).
START_ATTEMPTS = 100


Propose = Callable[[Mapping[str, Any], int], Mapping[str, np.ndarray]]


class Density:
    """The log density of the continuous latents of a model, given data, over one unconstrained vector.

    Discrete latents are summed out exactly (by Pyro's enumeration). Make it, and evaluate it, inside
    `inference.isolation.isolated`.

    Parameters
    ----------
    sites
        The model as read by `inference.sites.read_sites`.
    hold_params
        Accept a model with ``pyro.param``, holding each at its value in the parameter store.
    jacobian
        Include the log Jacobians, which a density over the unconstrained vector has. Without them it is the density of
        the constrained values, as a function of the vector.

    propose
        Gives values of the latent sites, from the data and a seed, from which a climb may begin (`ppl_models.Model`).

    Attributes
    ----------
    dim
        Length D of the vector.
    labels
        One name per coordinate; the coordinates of an unconstrained site may be fewer than those of the site.
    backend
        ``"graph"``: recorded, verified against eager Pyro, batched. ``"native"``: that graph compiled, after `compile`,
        then in ``native``. ``"eager"``: Pyro itself, point by point.
    reason
        Why something slower runs than was asked for; empty otherwise.
    graph
        The recorded function ``vector (D,) -> (gradient (D,), value)``, with data and constants as buffers; None where
        the backend is ``"eager"``.
    """

    def __init__(
        self, sites: Sites, *, hold_params: bool = False, jacobian: bool = True, propose: Propose | None = None
    ) -> None:
        sites.require_density(hold_params=hold_params)
        self.sites, self.jacobian, self._propose = sites, jacobian, propose
        self.dtype = torch.get_default_dtype()
        self._model = poutine.enum(sites.enumerated, first_available_dim=-1 - sites.max_plate_nesting)
        prototype = prototype_of(self._model, sites)
        nodes = {name: prototype.nodes[name] for name in sites.latent}
        start = {name: biject_to(node["fn"].support).inv(node["value"]) for name, node in nodes.items()}
        self._shapes = {name: value.shape for name, value in start.items()}
        self._evaluator = evaluator_of(prototype, sites)
        self._transforms = fixed_transforms(prototype, sites.latent)
        self.labels = [label for name, shape in self._shapes.items() for label in flat_labels(name, tuple(shape))]
        self.dim = len(self.labels)
        self.num_gradients = 0
        self.reason = ""
        self.graph: GraphModule | None = None
        self.native: NativeFunction | None = None
        self.device = torch.device("cpu")
        self._num_checks = VERIFY_POINTS
        self._record(self.flatten(start))

    @property
    def backend(self) -> str:
        """Name of the way in which the density is evaluated."""
        if self.device.type != "cpu":
            return f"graph on {self.device}"
        return "eager" if self.graph is None else "graph" if self.native is None else "native"

    @cached_property
    def is_dear(self) -> bool:
        """Whether a gradient takes torch more than `DEAR_SECONDS`, as one over a hundred thousand rows does."""
        return self.graph is not None and python_seconds(self.graph) > DEAR_SECONDS

    @cached_property
    def _native_values(self) -> NativeFunction | None:
        """The value without the gradient, compiled and checked, which takes half as long; None if that fails."""
        points, _, values = self._workable
        try:
            function = compile_graph(second(self.graph), points[0])
            got = torch.tensor([float(function(point.numpy())[0]) for point in points], dtype=self.dtype)
        except Exception as error:  # as in `compile`
            logger.info("no native code for values alone: %s", error)
            return None
        tolerance = VERIFY_TOLERANCE[self.dtype]
        return function if torch.allclose(got, values, rtol=tolerance, atol=tolerance, equal_nan=True) else None

    def compile(self, num_gradients: float = np.inf) -> None:
        """Go over to native code, verified against eager Pyro; keep ``reason`` where that cannot be done.

        Parameters
        ----------
        num_gradients
            Gradients that are about to be asked for: for so few that compiling takes longer nothing is done.
        """
        if self.graph is None or self.native is not None:
            return
        point = self._workable[0][0]
        worth = num_gradients * python_seconds(self.graph)
        try:
            native = compile_graph(self.graph, point, worth=worth)
            self._compare(*native.batch(self._workable[0].numpy()), tolerance=VERIFY_TOLERANCE[self.dtype])
        except NotWorthIt as choice:
            logger.info("no native code: %s", choice)
        except NoCompiler as advice:
            self.reason = str(advice)
        except Exception as error:  # what is not understood here must not stop a fit that can run without
            self.reason = f"no native code, so that the recorded graph runs in Python ({one_line(error)})"
            logger.info(self.reason)
        else:
            self.native = native

    def move(self, device: torch.device) -> None:
        """Evaluate batches on a device, verified against eager Pyro; keep ``reason`` where that cannot be done."""
        if self.graph is None or device.type == "cpu":
            return
        here = moved(self.graph, device)
        numbers = widest(self.graph)
        many, values = batched(here, numbers=numbers), batched(second(here), numbers=numbers)

        def gradients(points: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(result.cpu() for result in many(points.to(device)))

        try:
            self._compare(*gradients(self._workable[0]), tolerance=VERIFY_TOLERANCE[self.dtype])
        except Exception as error:  # an operation that the device lacks, too little memory
            self.reason = f"batches run on the CPU, since they failed on {device} ({one_line(error)})"
        else:
            self.device, self._many, self._values = device, gradients, lambda points: values(points.to(device)).cpu()

    def require_no_noise(self) -> None:
        """Raise `InputError` for a model whose density depends on random numbers that it draws."""
        if not self._workable or (self.graph is not None and not random_nodes(self.graph)):
            return
        points, _, values = self._workable
        if torch.allclose(self._eager_grad(points[0])[1], values[0], rtol=1e-12, atol=0, equal_nan=True):
            return
        raise InputError(
            "model: its density is another one at every evaluation, since it draws random numbers outside of "
            "pyro.sample (torch.randn, dropout); make them data or latent sites, or use SVI."
        )

    def unflatten(self, vector: torch.Tensor) -> dict[str, torch.Tensor]:
        """Split one vector (D,), or many (n, D), into unconstrained values by site."""
        parts = torch.split(vector, [shape.numel() for shape in self._shapes.values()], dim=-1)
        lead = vector.shape[:-1]
        return {n: part.reshape(lead + shape) for (n, shape), part in zip(self._shapes.items(), parts, strict=True)}

    def flatten(self, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Join unconstrained values by site into one vector (D,)."""
        return torch.cat([values[name].reshape(-1) for name in self._shapes])

    def eager(self, vector: torch.Tensor, data: Mapping[str, Any] | None = None) -> torch.Tensor:
        """Log density at one vector (D,), by running the Pyro model, at other data if given."""
        with pyro.validation_enabled(False), UnconstrainMessenger(self.unflatten(vector)) as run:
            trace = poutine.trace(self._model).get_trace(**(self.sites.data if data is None else data))
            return self._evaluator.log_prob(trace) + (run.log_jacobian if self.jacobian else 0.0)

    def value_and_grad(self, point: np.ndarray) -> tuple[float, np.ndarray]:
        """Log density and gradient (D,) at one point (D,); not finite where a matrix cannot be factorised."""
        self.num_gradients += 1
        if self.native is not None:
            gradient, value = self.native(point)
            return float(value), gradient.astype(np.float64)
        try:
            gradient, value = self._single(torch.as_tensor(point, dtype=self.dtype))
        except torch.linalg.LinAlgError:
            return -np.inf, np.zeros(self.dim)
        return value.item(), gradient.detach().to(torch.float64).numpy()

    def grad(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Log densities (n,) and gradients (n, D) at n points (n, D), as `value_and_grad` gives them."""
        if self.native is not None:
            self.num_gradients += len(points)
            return self.native.batch(points)[::-1]
        try:
            gradients, values = self._many(torch.as_tensor(points, dtype=self.dtype))
        except torch.linalg.LinAlgError:  # at one of the points
            pairs = [self.value_and_grad(point) for point in points]
            return np.array([value for value, _ in pairs]), np.array([gradient for _, gradient in pairs])
        self.num_gradients += len(points)
        return values.detach().to(torch.float64).numpy(), gradients.detach().to(torch.float64).numpy()

    def log_density(self, points: np.ndarray) -> np.ndarray:
        """Log densities (n,) at n points (n, D); not finite where a matrix cannot be factorised."""
        if self.native is not None:
            alone = self._native_values if self.is_dear and len(points) >= WORTH_VALUES else None
            if alone is None:
                return self.native.batch(points)[1]
            return np.array([float(alone(point)[0]) for point in points])
        try:
            with torch.no_grad():
                return self._values(torch.as_tensor(points, dtype=self.dtype)).to(torch.float64).numpy()
        except torch.linalg.LinAlgError:  # at one of the points
            if len(points) == 1:
                return np.array([-np.inf])
            return np.concatenate([self.log_density(point[None]) for point in points])

    def constrain(self, points: np.ndarray) -> dict[str, np.ndarray]:
        """Values of the latent sites, ``name -> (n, *shape)``, at n points (n, D)."""
        points = torch.as_tensor(points, dtype=self.dtype)
        if self._transforms is None:
            return map_draws(self._constrain_one, points)
        return constrain_all(self._transforms, self.unflatten(points))

    def unconstrain(self, values: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Points (n, D) at which the latent sites have the values ``name -> (n, *shape)``, and log Jacobians (n,)."""
        tensors = {name: torch.as_tensor(values[name], dtype=self.dtype) for name in self._shapes}
        if self._transforms is not None:
            return unconstrain_all(self._transforms, tensors)
        result = map_draws(self._unconstrain_one, tensors)
        return result["point"].astype(np.float64), result["log_jacobian"].astype(np.float64)

    def starts(self, num: int, *, generator: np.random.Generator, radius: float = START_RADIUS) -> np.ndarray:
        """Find ``num`` points (num, D), uniform on (-radius, radius), where density and gradient are finite.

        Raises
        ------
        InputError
            Fewer were found in `START_ATTEMPTS` tries each; the message names the site whose term is not finite.
        """
        found: list[np.ndarray] = []
        for _ in range(START_ATTEMPTS):
            points = generator.uniform(-radius, radius, size=(num, self.dim))
            values, gradients = self.grad(points)
            ok = np.isfinite(values) & np.isfinite(gradients).all(axis=1)
            found.extend(points[ok])
            if len(found) >= num:
                return np.array(found[:num])
        raise InputError(self._no_start(points[0]))

    def proposed(self, num: int, *, generator: np.random.Generator) -> np.ndarray:
        """Give ``num`` points (num, D) that the model proposes, or none (0, D) where it does not."""
        if self._propose is None or num == 0:
            return np.zeros((0, self.dim))
        first = int(generator.integers(2**30)) * 2  # an even seed, and those after it
        values = [self._propose(self.sites.data, first + i) for i in range(num)]
        return self.unconstrain({name: np.stack([value[name] for value in values]) for name in self._shapes})[0]

    def _constrain_one(self, vector: torch.Tensor) -> dict[str, torch.Tensor]:
        with UnconstrainMessenger(self.unflatten(vector)):
            trace = poutine.trace(self.sites.function).get_trace(**self.sites.data)
        return {name: trace.nodes[name]["value"] for name in self._shapes}

    def _unconstrain_one(self, values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        with ConstrainMessenger(values) as run:
            self.sites.function(**self.sites.data)
        return {"point": self.flatten(run.unconstrained), "log_jacobian": torch.as_tensor(run.log_jacobian)}

    def _record(self, example: torch.Tensor) -> None:
        """Record value and gradient, check them against eager Pyro, or fall back and keep the reason."""
        self._single = self._eager_grad
        self._many = lambda points: loop(self._eager_grad, points)
        inputs = Inputs(self.sites.data)

        def function(vector: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
            return self.eager(vector, inputs.join(tensors))

        try:
            self.graph = bound_graph(function, example, inputs, key=self._key, check=self._verify)
        except Exception as error:  # recording can fail in as many ways as models can be written
            said = f"{type(error).__name__}: {one_line(error)}"
            self.reason = f"the model could not be recorded, so eager Pyro runs it ({said})"
            logger.info(self.reason)
        else:
            self._single, self._many = self.graph, batched(self.graph, numbers=widest(self.graph))

    @cached_property
    def _values(self) -> Callable[[torch.Tensor], torch.Tensor]:
        if self.graph is None:
            return lambda points: loop(self.eager, points)
        return batched(second(self.graph), numbers=widest(self.graph))

    def _key(self) -> Hashable:
        """Tell what is recorded, apart from the data."""
        if self.sites.params:
            raise Unknown("the parameter store")
        shapes = tuple((name, tuple(shape)) for name, shape in self._shapes.items())
        discrete = tuple(self.sites.discrete), self.sites.max_plate_nesting
        return fingerprint(self.sites.function), shapes, discrete, self.dtype, self.jacobian

    def _eager_grad(self, vector: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        leaf = vector.detach().requires_grad_()
        with torch.enable_grad():
            value = self.eager(leaf)
            (gradient,) = torch.autograd.grad(value, leaf)
        return gradient, value.detach()

    def _verify(self, graph: Callable, kept: bool) -> None:  # noqa: FBT001 - the second of two, of a callback
        """Compare a graph, one point and many at a time, with eager Pyro."""
        tolerance = (KEPT_TOLERANCE if kept else VERIFY_TOLERANCE)[self.dtype]
        dear = isinstance(graph, GraphModule) and python_seconds(graph) > DEAR_SECONDS  # `is_dear`, once it is taken
        self._num_checks = DEAR_POINTS if dear else VERIFY_POINTS
        points = self._workable[0]
        one, many = (slice(1), slice(-1, None)) if dear else (slice(None), slice(None))
        self._compare(*loop(graph, points[one]), tolerance=tolerance, some=one)
        self._compare(*batched(graph, numbers=1)(points[many]), tolerance=tolerance, some=many)

    def _compare(self, gradients: Any, values: Any, *, tolerance: float, some: slice = slice(None)) -> None:
        for expected, got, what in zip(self._workable[1:], (gradients, values), ("gradient", "value"), strict=True):
            scale = expected.abs().amax(dim=tuple(range(1, expected.dim())), keepdim=True) + 1.0
            got = torch.as_tensor(got, dtype=self.dtype)
            scale, expected = scale[some], expected[some]
            if not torch.isclose(got / scale, expected / scale, rtol=0, atol=tolerance, equal_nan=True).all():
                raise ArithmeticError(f"the {what} differs from eager Pyro's")

    @cached_property
    def _workable(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """A few points (n, D) at which eager Pyro runs, the same ones every time; its gradients and values there."""
        points = np.random.default_rng(0).uniform(-START_RADIUS, START_RADIUS, size=(START_ATTEMPTS, self.dim))
        found = []
        for point in torch.as_tensor(points, dtype=self.dtype):
            try:
                found.append((point, *self._eager_grad(point)))
            except torch.linalg.LinAlgError:
                continue
            if len(found) == self._num_checks:
                break
        return tuple(torch.stack(parts) for parts in zip(*found, strict=True))

    def _no_start(self, point: np.ndarray) -> str:
        vector = torch.as_tensor(point, dtype=self.dtype)
        with torch.no_grad(), pyro.validation_enabled(False), UnconstrainMessenger(self.unflatten(vector)):
            try:
                trace = poutine.trace(self._model).get_trace(**self.sites.data)
            except torch.linalg.LinAlgError as error:
                return f"model: no finite starting point in {START_ATTEMPTS} tries; at the last one {error}"
            trace.compute_log_prob()
        for name, node in trace.nodes.items():
            if node["type"] == "sample" and not torch.isfinite(node["log_prob"]).all():
                value = node["value"]
                value = value.flatten()[:3].tolist() if isinstance(value, torch.Tensor) else value
                return (
                    f"site '{name}': no finite starting point in {START_ATTEMPTS} tries; its log probability is "
                    f"{node['log_prob'].sum().item()} at value {value}. Check its parameters and the scale of the data."
                )
        return (
            f"model: no finite starting point in {START_ATTEMPTS} tries; every site is finite but the gradient is not. "
            "Look for square roots, divisions or logarithms at zero."
        )
