"""Mini-batch training in `SVI`: putting together batches, steps, the loop and the draws at its end."""

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyro
import torch
from pyro.infer import ELBO

from inference.batch_steps import BatchSteps
from inference.batches import Batches, MiniBatch, held_out, plan_batches, split
from inference.checkpoints import Checkpoints
from inference.density import Density
from inference.devices import check_device
from inference.elbo import make_elbo, max_unused_gain
from inference.errors import InputError
from inference.fit import Problem, Run
from inference.guides import check_guide, make_guide, samples_discrete
from inference.isolation import caller_threads, keep_as_trained
from inference.objectives import StickingTheLanding, WeightedObjective, vectorized
from inference.optimise import PyroStepper, TorchStepper
from inference.sites import Sites, read_sites
from inference.svi_draws import affordable, confirmed, draw
from inference.trainer import Schedule, Trainer
from inference.validate import missing_argument, prepare_data

if TYPE_CHECKING:
    from inference.svi import SVI

# Log weights of draws need the density at all rows: beyond so many terms (about a minute) they are left out.
_MAX_TERMS = 10**9
# A weight of the KL stands inside the plain ELBO only.
_WEIGHS_KL = ("trace", "trace_mean_field", "trace_graph", "stl")


def train(engine: "SVI", problem: Problem, stepper: TorchStepper | PyroStepper) -> Run:
    """Train by mini-batches, and draw; called by `inference.svi.SVI`.

    Raises
    ------
    InputError
        The model cannot be given some rows only, an option does not suit it, or the first loss is not finite.
    """
    begin = time.perf_counter()
    sites = problem.sites
    batches, validation = _rows(engine, problem)
    guide = make_guide(engine.guide, sites, density=None, seed=problem.seed)
    local = _local(sites, batches)
    if isinstance(engine.guide, str) and local:
        raise InputError(
            f"guide='{engine.guide}': has numbers of its own for each row of plate '{batches.plates[0]}' (site "
            f"'{local[0]}'), which batches do not share; give a guide function that computes them from the row."
        )
    trace = check_guide(guide, sites)
    if isinstance(engine.guide, str):
        keep_as_trained(guide)
    handler = MiniBatch(batches.plates, batches.total)
    with handler:
        some = read_sites(sites.function, batches.take(batches.rows[: batches.size]))
    loss = make_elbo(engine.elbo, some, trace, num_particles=engine.particles)
    _check_kl_weight(engine, trace)
    summed_out = sites.discrete and not samples_discrete(trace, sites)
    model = sites.enumerated if summed_out else sites.function
    device = choose_device(engine.device)
    buffers = _buffers(problem.model, engine, guide)
    with caller_threads(), _on_device(device, batches, validation, (sites.function, guide)) as (batches, validation):
        loss = _vectorized(loss, model, guide, batches, handler)
        weighs_kl = engine.kl_weight is not None
        steps = BatchSteps(
            loss,
            model,
            guide,
            batches,
            handler,
            mixed_precision=engine.mixed_precision,
            weighs_kl=weighs_kl,
            eager=engine.backend == "pyro",
        )
        schedule = _schedule(engine, batches)
        run = _described(engine, problem, batches, steps) if engine.checkpoint is not None else {}
        checkpoints = Checkpoints(engine.checkpoint, run, resume=engine.resume) if run else None
        trainer = Trainer(
            steps,
            stepper,
            batches,
            validation,
            schedule,
            checkpoints=checkpoints,
            seed=problem.seed,
            buffers=buffers,
        )
        setup = time.perf_counter() - begin
        begin = time.perf_counter()
        status = trainer.train()
        optimisation = time.perf_counter() - begin
    begin = time.perf_counter()
    shape, remark = affordable(sites, (engine.num_chains, engine.num_samples))
    density, reason = _density(sites, local, batches, math.prod(shape))
    drawn = draw(guide, sites, density, shape, laplace_seed=None, reason=reason)
    if density is not None and engine.kl_weight is None:
        status = confirmed(status, density, drawn, max_unused_gain(loss))
    record = trainer.record
    history = {"loss": np.array(record.losses), "gradient_norm": np.array(record.norms)}
    if record.evaluations:
        places, bounds = zip(*record.evaluations, strict=True)
        history |= {"validation_step": np.array(places), "validation_elbo": np.array(bounds)}
    notes = [*drawn.notes, remark, steps.reason if engine.backend != "pyro" else ""]
    return Run(
        draws=drawn.draws,
        stats=drawn.stats,
        history=history,
        status=status,
        seconds={"setup": setup, "optimisation": optimisation, "sampling": time.perf_counter() - begin},
        notes=tuple(dict.fromkeys(note for note in notes if note)),
        state={
            **drawn.state,
            "num_gradients": len(record.losses) * engine.particles,
            "backend": f"{type(loss).__name__}, {steps.name}{f' on {device}' if device.type != 'cpu' else ''}",
            "guide": guide,
            "training": {
                "plate": batches.plates[0],
                "arguments": list(batches.names),
                "batch_size": batches.size,
                "rows": batches.total,
                "held_out": validation.total if validation else 0,
                "epochs": record.step / batches.num_batches,
            },
        },
    )


def choose_device(name: str) -> torch.device:
    """Give the device of training; ``"auto"``: a GPU if there is one."""
    return check_device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def _rows(engine: "SVI", problem: Problem) -> tuple[Batches, Batches | None]:
    """Give the rows to train on and those held out."""
    sites, validation = problem.sites, engine.validation
    batches = plan_batches(sites, size=engine.batch_size, plate=engine.batch_plate, seed=problem.seed)
    if validation is None:
        return batches, None
    if not isinstance(validation, Mapping):
        return split(batches, validation)
    everything = {**sites.data, **validation}
    prepared = prepare_data(sites.function, everything, may_miss=missing_argument(problem.model), label="validation")
    return batches, held_out(batches, prepared)


def _local(sites: Sites, batches: Batches) -> list[str]:
    """Name the latent sites that have an element for each row and are not summed out."""
    known = {**sites.latent, **sites.unenumerable}
    return [name for name, site in known.items() if set(site.plates) & set(batches.plates)]


def _check_kl_weight(engine: "SVI", trace: Any) -> None:
    if engine.kl_weight is None:
        return
    if engine.elbo is not None and engine.elbo not in _WEIGHS_KL:
        raise InputError(f"kl_weight: weighs the KL of the plain ELBO, elbo one of {', '.join(_WEIGHS_KL)}; drop it.")
    observed = [name for name, node in trace.nodes.items() if node["type"] == "sample" and node["is_observed"]]
    if observed:
        raise InputError(
            f"kl_weight: the factor '{observed[0]}' of the guide is part of its density and would not be weighed; "
            "write the guide as a transformed distribution."
        )


def _vectorized(loss: ELBO, model: Callable, guide: Callable, batches: Batches, handler: MiniBatch) -> ELBO:
    """Draw all particles of a weighted objective at once where the model can broadcast over them."""
    if not isinstance(loss, WeightedObjective) or isinstance(loss, StickingTheLanding) or loss.num_particles == 1:
        return loss
    rows = batches.rows[: batches.size]
    with torch.random.fork_rng(), pyro.validation_enabled(False), handler:
        return vectorized(loss, model, guide, batches.take(rows)) or loss


def _schedule(engine: "SVI", batches: Batches) -> Schedule:
    per_epoch = batches.num_batches
    return Schedule(
        num_steps=engine.num_steps or engine.num_epochs * per_epoch,
        kl_weight=engine.kl_weight,
        patience=engine.patience,
        validate_every=engine.validate_every or per_epoch,
        average=engine.average,
        checkpoint_every=engine.checkpoint_every or per_epoch,
    )


def _described(engine: "SVI", problem: Problem, batches: Batches, steps: BatchSteps) -> dict[str, Any]:
    """Say what a run must share with the one that it resumes."""
    data = hashlib.blake2b(digest_size=16)
    for name in batches.tensors:
        data.update(np.ascontiguousarray(batches.data[name].cpu().numpy()).tobytes())
    return {
        "seed": problem.seed,
        "batch_size": batches.size,
        "rows": batches.total,
        "data": data.hexdigest(),
        "objective": type(steps.loss).__name__,
        "num_particles": engine.particles,
        "optimizer": getattr(engine.optimizer, "__name__", str(engine.optimizer)),
        "lr": engine.lr,
        "clip_norm": engine.clip_norm,
        "average": engine.average,
        "mixed_precision": engine.mixed_precision,
        "backend": steps.name,
        "parameters": {name: list(p.shape) for name, p in pyro.get_param_store().named_parameters()},
    }


def _buffers(model: Any, engine: "SVI", guide: Any) -> dict[str, torch.Tensor]:
    """Tensors of modules that are no parameters, such as the running means of batch normalisation."""
    owners = {"guide": getattr(guide, "__self__", guide), "model": getattr(model, "__self__", model)}
    modules = {name: owner for name, owner in owners.items() if isinstance(owner, torch.nn.Module)}
    return {f"{owner}.{name}": b for owner, module in modules.items() for name, b in module.named_buffers()}


@contextmanager
def _on_device(
    device: torch.device, batches: Batches, validation: Batches | None, functions: tuple[Callable, ...]
) -> Iterator[tuple[Batches, Batches | None]]:
    """Have data, parameters and networks on a device for the block."""
    moved = (batches, validation) if device.type == "cpu" else tuple(b and b.to(device) for b in (batches, validation))
    modules = [getattr(function, "__self__", function) for function in functions]
    _move(device, modules)
    try:
        with device if device.type != "cpu" else nullcontext():
            yield moved
    finally:
        _move(torch.device("cpu"), modules)


def _move(device: torch.device, modules: list[Any]) -> None:
    for module in modules:
        if isinstance(module, torch.nn.Module):
            module.to(device)
    for _, p in pyro.get_param_store().named_parameters():
        p.data = p.data.to(device)
        p.grad = None


def _density(sites: Sites, local: list[str], batches: Batches, num: int) -> tuple[Density | None, str]:
    """Give the flat density for log weights, or why there is none."""
    if local:
        return None, f"no log weights of the joint draws: site '{local[0]}' has an element for each row"
    if sites.unenumerable or sites.subsampled or not sites.latent:
        return None, ""
    if batches.total * num > _MAX_TERMS:
        return None, f"no log weights: {num} draws at {batches.total} rows are more than {_MAX_TERMS:.0e} terms"
    return Density(sites, hold_params=True), ""


def check_options(engine: "SVI") -> None:
    """Check the options of training of an engine.

    Raises
    ------
    InputError
        One that is out of range, or contradicts another.
    """
    if engine.batch_size is None:
        for name, default in _TRAINING_ONLY.items():
            if getattr(engine, name) != default:
                raise InputError(f"{name}: is an option of training by mini-batches; give batch_size, too.")
        return
    if (engine.num_epochs is None) == (engine.num_steps is None):
        raise InputError("batch_size: needs either num_epochs or num_steps.")
    for name in ("stopping",) if engine.stopping is not None else ():
        raise InputError(f"{name}: training by mini-batches stops by num_epochs, or by validation and patience.")
    if engine.num_restarts != 1:
        raise InputError("num_restarts: training by mini-batches runs once; fit again with other seeds.")
    if engine.optimizer in ("lbfgs", "dowg") or engine.guide == "laplace":
        what = f"optimizer='{engine.optimizer}'" if engine.guide != "laplace" else "guide='laplace'"
        raise InputError(f"{what}: needs all rows at each step; drop batch_size, or use optimizer='adam'.")
    fraction = engine.validation
    if fraction is not None and not isinstance(fraction, Mapping):
        ok = isinstance(fraction, float) and 0 < fraction < 1
        if not ok:
            raise InputError(
                f"validation: expected a fraction between 0 and 1, or a mapping of data, got {fraction!r}."
            )
    for name in ("patience", "validate_every"):
        if getattr(engine, name) is not None and fraction is None:
            raise InputError(f"{name}: needs rows held out; give validation=0.1, or a mapping of data.")
    for name in ("checkpoint_every", "resume"):
        if getattr(engine, name) and engine.checkpoint is None:
            raise InputError(f"{name}: needs a folder; give checkpoint='folder'.")
    if engine.checkpoint is not None and not isinstance(engine.checkpoint, str | Path):
        raise InputError(f"checkpoint: expected the path of a folder, got {engine.checkpoint!r}.")
    if engine.lr_schedule_by not in ("step", "epoch"):
        raise InputError(f"lr_schedule_by: expected 'step' or 'epoch', got {engine.lr_schedule_by!r}.")
    weight = engine.kl_weight
    if not (weight is None or callable(weight) or (isinstance(weight, int | float) and 0 <= weight < math.inf)):
        raise InputError(f"kl_weight: expected a number of at least 0 or a function of the step, got {weight!r}.")
    if engine.average is not None and not (isinstance(engine.average, float) and 0 < engine.average < 1):
        raise InputError(f"average: expected a decay between 0 and 1, such as 0.999, got {engine.average!r}.")


_TRAINING_ONLY = {
    "num_epochs": None,
    "batch_plate": None,
    "validation": None,
    "validate_every": None,
    "patience": None,
    "lr_schedule_by": "step",
    "kl_weight": None,
    "average": None,
    "device": "auto",
    "mixed_precision": False,
    "checkpoint": None,
    "checkpoint_every": None,
    "resume": False,
}
