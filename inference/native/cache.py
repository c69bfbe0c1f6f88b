"""Where compiled libraries are kept: one folder of the user, bounded in size, shared by all processes."""

import atexit
import logging
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where nothing is compiled
    fcntl = None

logger = logging.getLogger(__name__)

MAX_BYTES = 256 * 2**20  # a library is 20 to 200 kB: thousands of models, and less room than one wheel of torch
RECENT_SECONDS = 3600  # younger files stay: a process may be about to load them, or be writing them
POLL_SECONDS = 0.02  # a wait for another process's compiler lasts about a second
# Only files of these names are ever removed.
LIBRARIES, LEFTOVERS, COMPILERS = "ppl-*.so", ("ppl-*.tmp", "ppl-*.lock"), "compilers.json"


@dataclass(frozen=True)
class Usage:
    """What is in the cache, or what went from it.

    Attributes
    ----------
    folder
        Where.
    num_libraries
        How many libraries.
    num_bytes
        Their size.
    """

    folder: Path
    num_libraries: int
    num_bytes: int


def location() -> Path:
    """Return the folder that should hold the libraries, which need not exist.

    It is ``native`` in ``PPL_CACHE_DIR``, or else in ``ppl-verdict`` among the platform's caches of the user.
    """
    return (_named_by("PPL_CACHE_DIR") or _user_caches() / "ppl-verdict") / "native"


def writable_folder() -> Path:
    """Return the folder for new libraries: the location, or a temporary one where that cannot be written."""
    return location() if can_write() else _temporary.folder(instead_of=location())


def can_write() -> bool:
    """Make the location if need be and say whether it can be written."""
    path = location()
    if not path.is_absolute():  # there is no home
        return False
    with suppress(OSError):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)  # what lies there is run: nobody else may write
    return os.access(path, os.W_OK | os.X_OK)


def find(name: str) -> Path | None:
    """Return a library that is kept and mark it as used, or None. A folder that can only be read will do."""
    path = location() / name
    if not path.is_file():
        return None
    with suppress(OSError):
        os.utime(path)
    return path


def usage() -> Usage:
    """Count the libraries that are kept."""
    sizes = [status.st_size for _, status in _entries(location(), LIBRARIES)]
    return Usage(location(), len(sizes), sum(sizes))


def clear() -> Usage:
    """Remove all libraries, also those in use (a loaded one lives on), and return what went."""
    gone = [status.st_size for path, status in _entries(location(), LIBRARIES) if _remove(path)]
    _remove_leftovers(location())
    _remove(location() / COMPILERS)
    return Usage(location(), len(gone), sum(gone))


def trim() -> None:
    """Remove the libraries unused for longest until the rest fits into `MAX_BYTES`."""
    entries = sorted(_entries(location(), LIBRARIES), key=lambda entry: entry[1].st_mtime)
    excess = sum(status.st_size for _, status in entries) - MAX_BYTES
    for path, status in entries:
        if excess <= 0 or status.st_mtime > time.time() - RECENT_SECONDS:
            break
        if _remove(path):
            excess -= status.st_size
    _remove_leftovers(location())


@contextmanager
def turn(library: Path, *, patience: float) -> Iterator[None]:
    """Wait until no other process or thread is at work on a library, ``patience`` seconds at the most.

    The lock is advice: a block also runs where locks do not work and after the patience, because libraries are written
    beside and renamed. The system frees the lock of a process that dies.
    """
    lock = library.with_suffix(".lock")
    with lock.open("wb") as handle:
        held = _acquire(handle, time.monotonic() + patience)
        try:
            yield
        finally:
            if held:
                # Whoever waits for the removed file finds the library made; only after a failure may two work at once.
                _remove(lock)
                fcntl.flock(handle, fcntl.LOCK_UN)  # explicit: a forked process may have inherited the handle


def _acquire(handle: object, deadline: float) -> bool:
    while fcntl is not None and time.monotonic() < deadline:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(POLL_SECONDS)
        except OSError:  # a file system without locks
            return False
    return False


class _Temporary:
    """A folder for this process alone, made when first needed and removed at its end."""

    def __init__(self) -> None:
        self.path: Path | None = None
        self._owner = 0
        self._turn = threading.Lock()

    def folder(self, *, instead_of: Path) -> Path:
        with self._turn:
            if self.path is None or not self.path.is_dir():
                self.path, self._owner = Path(tempfile.mkdtemp(prefix="ppl-verdict-")), os.getpid()
                atexit.register(self.remove)
                logger.warning(
                    "the folder for compiled models cannot be written, so they are compiled anew in every process: %s; "
                    "set PPL_CACHE_DIR to a folder that can",
                    instead_of,
                )
            return self.path

    def remove(self) -> None:
        if self.path is not None and os.getpid() == self._owner:  # not at the end of a forked process
            shutil.rmtree(self.path, ignore_errors=True)


_temporary = _Temporary()


def _user_caches() -> Path:
    # platformdirs would do this, but is with us only as long as nutpie asks for arviz<1.
    home = Path(os.path.expanduser("~"))
    if sys.platform == "darwin":
        return home / "Library" / "Caches"
    return _named_by("LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME") or home / ".cache"


def _named_by(variable: str) -> Path | None:
    value = os.environ.get(variable)
    return Path(os.path.expanduser(value)).absolute() if value else None


def _entries(folder: Path, *patterns: str) -> list[tuple[Path, os.stat_result]]:
    entries = []
    for pattern in patterns:
        for path in folder.glob(pattern):
            with suppress(OSError):  # gone since
                entries.append((path, path.stat()))
    return entries


def _remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left."""
    for path, status in _entries(folder, *LEFTOVERS):
        if status.st_mtime < time.time() - RECENT_SECONDS:
            _remove(path)


def _remove(path: Path) -> bool:
    try:
        path.unlink()
    except OSError:
        return False
    return True
