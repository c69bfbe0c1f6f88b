"""Mini-batch training in `SVI`: putting together batches, steps, the loop and the draws at its end."""

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
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
from inference.fit import Problem, Run, Status
from inference.guides import check_guide, make_guide, samples_discrete
from inference.isolation import caller_threads, keep_as_trained
from inference.objectives import StickingTheLanding, WeightedObjective, vectorized
from inference.optimise import PyroStepper, TorchStepper, cosine
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
    if isinstance(engine.guide, str):
        if local:
            raise InputError(
                f"guide='{engine.guide}': has numbers of its own for each row of plate '{batches.plates[0]}' (site "
                f"'{local[0]}'), which batches do not share; give a guide function that computes them from the row."
            )
        keep_as_trained(guide)
    trace = check_guide(guide, sites)
    _check_kl_weight(engine, trace)
    handler = MiniBatch(batches.plates, batches.total)
    with handler:
        some = read_sites(sites.function, batches.take(batches.rows[: batches.size]))
    loss = make_elbo(engine.elbo, some, trace, num_particles=engine.particles)
    summed_out = sites.discrete and not samples_discrete(trace, sites)
    model = sites.enumerated if summed_out else sites.function
    device = choose_device(engine.device)
    with caller_threads(), _on_device(device, batches, validation, (sites.function, guide)) as (batches, validation):
        loss = _vectorized(loss, model, guide, batches, handler)
        steps = BatchSteps(
            *(loss, model, guide, batches, handler),
            mixed_precision=engine.mixed_precision,
            weighs_kl=engine.kl_weight is not None,
            eager=engine.backend == "pyro",
        )
        schedule = _schedule(engine, batches)
        if engine.lr_schedule == "cosine":
            stepper.schedule = cosine(schedule.num_steps)
        trainer = Trainer(
            *(steps, stepper, batches, validation, schedule),
            checkpoints=_checkpoints(engine, problem, batches, steps),
            seed=problem.seed,
            buffers=_buffers(sites.function, guide),
        )
        trained = time.perf_counter()
        status = trainer.train()
    seconds = {"setup": trained - begin, "optimisation": time.perf_counter() - trained}
    return _finished(engine, sites, guide, trainer, status, seconds, local)


def _finished(
    engine: "SVI",
    sites: Sites,
    guide: Callable,
    trainer: Trainer,
    status: Status,
    seconds: dict[str, float],
    local: list[str],
) -> Run:
    """Draw from the trained guide, and put together what the run gives."""
    begin = time.perf_counter()
    steps, batches, validation, record = trainer.steps, trainer.batches, trainer.validation, trainer.record
    shape, remark = affordable(sites, (engine.num_chains, engine.num_samples))
    density, reason = _density(sites, local, batches, math.prod(shape))
    try:
        drawn = draw(guide, sites, density, shape, laplace_seed=None, reason=reason)
    except InputError as error:
        if status.kind != "diverged":
            raise
        raise InputError(f"guide: cannot be drawn from after training. {status.message}") from error
    if density is not None and engine.kl_weight is None and validation is None:
        status = confirmed(status, density, drawn, max_unused_gain(steps.loss))
    notes = [*drawn.notes, remark, steps.reason if engine.backend != "pyro" else ""]
    training = {
        "plate": batches.plates[0],
        "arguments": list(batches.names),
        "batch_size": batches.size,
        "rows": batches.total,
        "held_out": validation.total if validation else 0,
        "epochs": record.step / batches.num_batches,
    }
    return Run(
        draws=drawn.draws,
        stats=drawn.stats,
        history=record.history(),
        status=status,
        seconds={**seconds, "sampling": time.perf_counter() - begin},
        notes=tuple(dict.fromkeys(note for note in notes if note)),
        state={
            **drawn.state,
            "num_gradients": record.step * engine.particles,
            "backend": f"{type(steps.loss).__name__}, {trainer.where}",
            "guide": guide,
            "training": training,
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


def _checkpoints(engine: "SVI", problem: Problem, batches: Batches, steps: BatchSteps) -> Checkpoints | None:
    """Open the folder of checkpoints, saying what a run must share with the one that it resumes."""
    if engine.checkpoint is None:
        return None
    data = hashlib.blake2b(digest_size=16)
    for name in batches.tensors:
        data.update(np.ascontiguousarray(batches.data[name].cpu().numpy()).tobytes())
    settings = ("lr", "clip_norm", "average", "mixed_precision", "particles")
    run = {
        "seed": problem.seed,
        "batch_size": batches.size,
        "rows": batches.total,
        "data": data.hexdigest(),
        "objective": type(steps.loss).__name__,
        "optimizer": getattr(engine.optimizer, "__name__", str(engine.optimizer)),
        **{name: getattr(engine, name) for name in settings},
        "backend": steps.name,
        "parameters": {name: list(p.shape) for name, p in pyro.get_param_store().named_parameters()},
    }
    return Checkpoints(engine.checkpoint, run, resume=engine.resume)


def _buffers(model: Any, guide: Any) -> dict[str, torch.Tensor]:
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
