"""Checkpoints of a training run: all that the next step depends on, so that a resumed run is the unbroken one."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from inference.errors import InputError

FORMAT = 1
# The newest are kept: a fault that is noticed late may have reached the last one.
_KEPT = 3
_NAME = re.compile(r"step-(\d+)\.pt")


class Checkpoints:
    """A folder of checkpoints of one run.

    Parameters
    ----------
    folder
        Made where it is missing.
    run
        What a run must share with the one that it resumes: seed, batch size, shapes of parameters and the like.
    resume
        Whether to go on from the newest one.

    Raises
    ------
    InputError
        The folder holds checkpoints and none was to be resumed, or those of another run.
    """

    def __init__(self, folder: str | Path, run: Mapping[str, Any], *, resume: bool) -> None:
        self.folder, self.run, self.resume = Path(folder), dict(run), resume
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"checkpoint: no folder can be made at {folder} ({error.strerror}).") from error
        if self.newest is not None and not resume:
            raise InputError(
                f"checkpoint: {self.folder} holds checkpoints of a run; go on from them with resume=True, or give "
                "another folder."
            )

    @property
    def newest(self) -> Path | None:
        """The last checkpoint; None where there is none."""
        return max(self._files(), key=_step, default=None)

    def write(self, step: int, state: Mapping[str, Any]) -> Path:
        """Keep the state after a step; a file appears whole or not at all."""
        path = self.folder / f"step-{step:08d}.pt"
        partial = path.with_suffix(".partial")
        torch.save({"format": FORMAT, "run": self.run, "state": dict(state)}, partial)
        partial.replace(path)
        for old in sorted(self._files(), key=_step)[:-_KEPT]:
            old.unlink()
        return path

    def read(self) -> dict[str, Any] | None:
        """Give the newest state; None where nothing is to be resumed.

        Raises
        ------
        InputError
            It is damaged, or of another run.
        """
        path = self.newest
        if path is None or not self.resume:
            return None
        try:
            saved = torch.load(path, weights_only=True, map_location="cpu")
            version, run, state = saved["format"], saved["run"], saved["state"]
        except Exception as error:
            raise InputError(
                f"checkpoint: {path} cannot be read ({type(error).__name__}); remove it to resume from the one before."
            ) from error
        if version != FORMAT:
            raise InputError(f"checkpoint: {path} has format {version}, this version reads {FORMAT}.")
        for name, value in self.run.items():
            if run.get(name) != value:
                raise InputError(
                    f"resume: {path} is of another run: {name} was {run.get(name)!r} and is now {value!r}; give the "
                    "settings and the data of that run, or another folder."
                )
        return state

    def _files(self) -> list[Path]:
        return [path for path in self.folder.iterdir() if _NAME.fullmatch(path.name)]


def _step(path: Path) -> int:
    return int(_NAME.fullmatch(path.name)[1])
