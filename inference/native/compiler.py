"""Source text to shared library: find a C++ compiler, run it once per model and machine, keep the result."""

import functools
import hashlib
import json
import logging
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from inference.native import cache

logger = logging.getLogger(__name__)

# 5 to 10 % more time than -O2, which g++ before 12 does not vectorise with; and the quick one.
OPTIMISE = {False: "-O3", True: "-O1"}
FLAGS = (
    "-std=c++17",
    "-shared",
    "-fPIC",
    # Not -ffast-math: infinities and NaN are answers here. These two give up only what nobody reads. Not
    # -fno-signed-zeros either: with it g++ 12 takes x * 0 for 0 in vector loops, also where x is infinite or NaN.
    "-fno-math-errno",  # sqrt as an instruction, exp and log as functions without memory
    "-fno-trapping-math",  # both sides of a condition may be computed, so that loops with one vectorise
    "-fopenmp-simd",  # `#pragma omp simd reduction` allows one sum to be reordered (twice as fast); no run-time library
    "-pthread",
    "-fno-plt",  # calls of exp and log go straight to libm
)
# Compilers differ in how they are told to use all of this CPU, and an old assembler may not know what the compiler
# emits for it. Tried in turn.
# 512-bit vectors, where there are any, save a fifth on loops of exponentials (g++ prefers 256 by itself).
TARGETS = (("-march=native", "-mprefer-vector-width=512"), ("-march=native",), ("-mcpu=native",), ())
TARGET_REFUSED = re.compile(
    r"march|mcpu|prefer-vector|target cpu|no such instruction|unsupported instruction|does not support", re.I
)
NAMES = ("g++", "clang++", "c++")
COMPILER_SECONDS = 120  # 2700 lines in one function took 5; a graph that takes this is better evaluated without
VERSION_SECONDS = 20  # milliseconds, but a first start from a network disk can be slow
PATIENCE_SECONDS = COMPILER_SECONDS + 10  # after this whoever compiles the same has been suspended
MESSAGE_LINES = 4  # the first errors tell; what follows is their consequence

if os.name == "nt":
    ADVICE = "native code is not made on Windows and everything runs slower; Windows Subsystem for Linux has it"
else:
    ADVICE = (
        "no C++ compiler on PATH (g++ or clang++): native code is off and everything runs slower; install one, "
        "e.g. `apt install g++` or `xcode-select --install`"
    )


class NoCompiler(RuntimeError):  # noqa: N818 - a state of the machine rather than an error
    """There is no compiler; the message is one line of advice."""


class CompileFailed(RuntimeError):  # noqa: N818
    """The compiler refused the source or did not finish; the message is one line.

    Attributes
    ----------
    log
        All that the compiler wrote.
    """

    def __init__(self, message: str, *, log: str = "") -> None:
        super().__init__(message)
        self.log = log


@dataclass(frozen=True)
class Compiler:
    """A compiler that answers.

    Attributes
    ----------
    command
        Path, and further words of ``CXX``.
    version
        The first line of what ``--version`` says.
    """

    command: tuple[str, ...]
    version: str


def build(source: str, *, quick: bool = False) -> Path:
    """Compile self-contained C++ source to a shared library, unless that has been done before.

    Libraries are kept by the hash of source, flags, compiler and CPU. Processes and threads that ask for the same
    source at once compile it once.

    Parameters
    ----------
    source
        The whole text; it includes nothing but the compiler's own headers.
    quick
        Compile with -O1, whose time grows with the text and no faster; loops marked for the vector unit still use it.

    Returns
    -------
    Path
        The library, complete, in the cache folder or, where that cannot be written, in one of this process.

    Raises
    ------
    NoCompiler
        There is none on this machine.
    CompileFailed
        The source is wrong, the disk is full, or `COMPILER_SECONDS` have passed.
    """
    compiler = find_compiler()
    if compiler is None:
        raise NoCompiler(ADVICE)
    name = f"ppl-{_key(source, compiler, quick=quick)}.so"
    library = cache.find(name)
    if library is not None:
        return library
    try:
        library = cache.writable_folder() / name
        with cache.turn(library, patience=PATIENCE_SECONDS):
            if not library.is_file():
                _compile(source, compiler, library, quick=quick)
        cache.trim()
    except OSError as error:
        raise CompileFailed(f"the C++ compiler could not be run ({' '.join(compiler.command)}): {error}") from error
    return library


def find_compiler() -> Compiler | None:
    """Find a compiler: the one that ``CXX`` names, or else g++, clang++ or c++ on the path; None without one."""
    if os.name == "nt":
        return None
    return _find(os.environ.get("CXX", ""), os.environ.get("PATH"))


def num_compilations() -> int:
    """Count the compiler runs of this process so far."""
    return _runs


# --- Compiling --------------------------------------------------------------------------------------------------------

_runs = 0
_count = threading.Lock()


def _compile(source: str, compiler: Compiler, library: Path, *, quick: bool) -> None:
    """Write a library beside its place and rename it, so that an unfinished one is never found there."""
    begin = time.perf_counter()
    part = library.with_name(f"{library.stem}.{uuid.uuid4().hex}.tmp")
    try:
        for target in TARGETS:
            log = _run([*compiler.command, OPTIMISE[quick], *FLAGS, *target, "-x", "c++", "-", "-o", str(part)], source)
            if log is None or not TARGET_REFUSED.search(log):
                break
        if log is not None:
            raise CompileFailed(_summary(compiler, log), log=log)
        with part.open("rb") as handle:
            os.fsync(handle.fileno())  # a name that outlives a power cut has its content
        part.replace(library)
    finally:
        part.unlink(missing_ok=True)
    logger.info("compiled %s in %.1f s", library, time.perf_counter() - begin)


def _run(command: list[str], source: str) -> str | None:
    """Run the compiler; return None if it succeeds, or else what it says."""
    global _runs
    with _count:
        _runs += 1
    english = {**os.environ, "LC_ALL": "C"}  # `TARGET_REFUSED` reads the messages
    # A session of its own: the compiler is several processes, and they are ended together.
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=english,
        start_new_session=True,
    ) as process:
        try:
            _, log = process.communicate(source.encode(), timeout=COMPILER_SECONDS)
        except BaseException as error:
            with suppress(OSError):  # it has ended already
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                message = f"the C++ compiler did not finish within {COMPILER_SECONDS} s ({command[0]})"
                raise CompileFailed(message) from None
            raise
    return None if process.returncode == 0 else log.decode(errors="replace") or f"exit status {process.returncode}"


def _summary(compiler: Compiler, log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line][:MESSAGE_LINES] or lines[-MESSAGE_LINES:]
    return f"the C++ compiler refused the generated code ({' '.join(compiler.command)}): {'; '.join(errors)}"


# --- What a library depends on ----------------------------------------------------------------------------------------


def _key(source: str, compiler: Compiler, *, quick: bool) -> str:
    parts = [source, OPTIMISE[quick], FLAGS, TARGETS, compiler.command[1:], compiler.version, _machine()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:40]  # 160 bits: no two alike, names still readable


# What tells one CPU from another in /proc/cpuinfo, on x86, ARM and others, and does not change from hour to hour.
CPU_FIELDS = {
    *("vendor_id", "cpu family", "model", "model name", "flags"),
    *("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "Features"),
    *("cpu", "isa", "features"),
}


@functools.cache
def _machine() -> str:
    """Describe CPU and C library: home folders are shared by machines that differ in both."""
    facts = {platform.machine(), sys.platform}
    with suppress(OSError, ValueError):
        facts.add(str(os.confstr("CS_GNU_LIBC_VERSION")))
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        facts |= {line for line in lines if line.partition(":")[0].strip() in CPU_FIELDS}
    if sys.platform == "darwin":
        facts.add(_output("sysctl", "-n", "machdep.cpu.brand_string"))
    return "\n".join(sorted(facts))


_found: dict[tuple[str, str | None], Compiler] = {}


def _find(cxx: str, path: str | None) -> Compiler | None:
    if (cxx, path) not in _found:
        compiler = _search(cxx, path)
        if compiler is None:  # not kept: one may be installed while a notebook is open
            return None
        _found[cxx, path] = compiler
    return _found[cxx, path]


def _search(cxx: str, path: str | None) -> Compiler | None:
    try:
        named = shlex.split(cxx)
    except ValueError:
        named = [cxx]
    for words in filter(None, (named, *([name] for name in NAMES))):
        program = shutil.which(words[0], path=path)
        if program is not None:
            command = (str(Path(program).absolute()), *words[1:])
            version = _version(command)
            if version:
                return Compiler(command, version)
        if words is named:
            logger.warning("CXX: '%s' is no compiler that answers; taking one from PATH", cxx)
    return None


def _version(command: tuple[str, ...]) -> str:
    """Ask a compiler for its version, or recall the answer of the same file: to start a process takes time."""
    status = Path(command[0]).stat()
    name, stamp = shlex.join(command), [status.st_mtime_ns, status.st_size]
    known = _known_versions()
    if known.get(name, [])[:2] == stamp:
        return known[name][2]
    version = _output(*command, "--version").partition("\n")[0]
    if version and cache.can_write():
        with suppress(OSError):  # then it is asked again next time
            part = cache.location() / f"ppl-{uuid.uuid4().hex}.tmp"
            part.write_text(json.dumps(known | {name: [*stamp, version]}))
            part.replace(cache.location() / cache.COMPILERS)
    return version


def _known_versions() -> dict[str, list]:
    try:
        return dict(json.loads((cache.location() / cache.COMPILERS).read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def _output(*command: str) -> str:
    """Return what a command prints, or nothing if it fails."""
    try:
        result = subprocess.run(command, capture_output=True, timeout=VERSION_SECONDS, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return result.stdout.decode(errors="replace").strip() if result.returncode == 0 else ""
