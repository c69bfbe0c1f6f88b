"""Progress bars: on a terminal by default, never elsewhere unless asked for."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from tqdm.auto import tqdm

DELAY = 1.0  # seconds before a bar appears: what is over sooner needs none
_shown: ContextVar[bool | None] = ContextVar("progress", default=None)


@contextmanager
def showing(wanted: bool | None) -> Iterator[bool]:  # noqa: FBT001 - the switch itself
    """Decide for the block whether bars are shown; None: where standard error is a terminal."""
    decided = sys.stderr.isatty() if wanted is None else wanted
    token = _shown.set(decided)
    try:
        yield decided
    finally:
        _shown.reset(token)


def bar(iterable: Iterable | None = None, *, desc: str, total: int | None = None) -> Any:
    """Give a progress bar over ``iterable``, or one to be updated by hand; it appears after `DELAY` seconds."""
    shown = _shown.get()
    hidden = not (sys.stderr.isatty() if shown is None else shown)
    return tqdm(iterable, desc=desc, total=total, disable=hidden, leave=False, delay=DELAY)
