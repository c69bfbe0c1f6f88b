"""Options of mini-batch training: what they may be, and what contradicts what."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from inference.errors import InputError

if TYPE_CHECKING:
    from inference.svi import SVI

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
    if engine.stopping is not None:
        raise InputError("stopping: training by mini-batches stops by num_epochs, or by validation and patience.")
    if engine.num_restarts != 1:
        raise InputError("num_restarts: training by mini-batches runs once; fit again with other seeds.")
    if engine.optimizer == "lbfgs" or engine.guide == "laplace":
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
