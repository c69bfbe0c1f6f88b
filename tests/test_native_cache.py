"""Compiling once: by how often a compiler is really run, in one process, in the next, and in four at once."""

import ctypes
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from inference.cli import main
from inference.native import cache, compiler
from inference.native.compiler import TARGETS, CompileFailed, NoCompiler, build, find_compiler, num_compilations

ROOT = Path(__file__).resolve().parents[1]
PATH_COMPILER = compiler._search("", os.environ.get("PATH")) if os.name == "posix" else None
needs_compiler = pytest.mark.skipif(PATH_COMPILER is None, reason="there is no C++ compiler here")

# A process that has only the two modules, without torch: it starts in 50 ms.
LIGHT = f"""
import sys, types
for name in ("inference", "inference.native"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [{str(ROOT)!r} + "/" + name.replace(".", "/")]
from inference.native import cache, compiler
"""


def adds(number):
    """Source whose function adds a number."""
    return f'extern "C" double shifted(double x) {{ return x + {number}; }}\n'


def shifted(library, x=0.0):
    function = ctypes.CDLL(str(library)).shifted
    function.restype, function.argtypes = ctypes.c_double, [ctypes.c_double]
    return function(x)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PPL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(compiler, "_found", {})
    monkeypatch.setattr(cache, "_temporary", cache._Temporary())
    return tmp_path / "cache" / "native"


@pytest.fixture
def wrap(tmp_path, monkeypatch):
    """Put a script before the compiler, through CXX, that notes each call and then runs the given lines."""
    log = tmp_path / "calls"

    def make(lines="", *, name="wrapped"):
        script = tmp_path / name
        version = f'if [ "$*" = --version ]; then exec {PATH_COMPILER.command[0]} --version; fi'
        body = [f'echo "$*" >> {log}', version, lines, f'exec {PATH_COMPILER.command[0]} "$@"']
        script.write_text("\n".join(["#!/bin/sh", *body]) + "\n")
        script.chmod(0o755)
        monkeypatch.setenv("CXX", str(script))
        return log

    return make


def compilations(log):
    """Calls that compile, of those noted."""
    return [line for line in log.read_text().splitlines() if line != "--version"] if log.exists() else []


def process(code, **options):
    return subprocess.Popen([sys.executable, "-c", LIGHT + code], stdout=subprocess.PIPE, text=True, **options)


def alive(pid_file):
    """Tell whether the process noted in a file runs."""
    ps = ["ps", "-o", "stat=", "-p", pid_file.read_text().strip()]
    return subprocess.run(ps, capture_output=True, text=True, check=False).stdout.strip()[:1] not in ("", "Z")


def wait_for(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    assert condition()


# --- Once -------------------------------------------------------------------------------------------------------------


@needs_compiler
def test_same_source_is_compiled_once_and_other_source_again(wrap):
    log, before = wrap(), num_compilations()
    first, second = build(adds(1)), build(adds(1))
    assert first == second
    assert shifted(first) == 1.0
    assert num_compilations() == before + 1 == before + len(compilations(log))
    assert shifted(build(adds(2))) == 2.0
    assert num_compilations() == before + 2


@needs_compiler
def test_new_process_compiles_nothing_and_asks_for_no_version(wrap):
    log = wrap()
    library = build(adds(3))
    calls = log.read_text()
    child = process(f"print(compiler.build({adds(3)!r}), compiler.num_compilations())")
    assert child.communicate()[0].split() == [str(library), "0"]
    assert log.read_text() == calls
    assert "--version" in calls
    # Negative control: a compiler that has changed is asked again.
    wrap("# changed")
    process("compiler.find_compiler()").communicate()
    assert log.read_text() == calls + "--version\n"


@needs_compiler
@pytest.mark.parametrize("locked", [True, False])
def test_four_processes_at_once_compile_once(locked, wrap):
    log = wrap("sleep 0.5")
    unlock = "" if locked else "cache._acquire = lambda handle, deadline: False\n"
    children = [process(unlock + f"print(compiler.build({adds(4)!r}))") for _ in range(4)]
    libraries = {child.communicate()[0].strip() for child in children}
    assert len(libraries) == 1
    assert shifted(libraries.pop()) == 4.0
    assert len(compilations(log)) == 1 if locked else len(compilations(log)) > 1


@needs_compiler
def test_four_threads_at_once_compile_once(wrap):
    log, libraries = wrap("sleep 0.2"), []
    threads = [threading.Thread(target=lambda: libraries.append(build(adds(5)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(libraries) == 4
    assert len(set(libraries)) == len(compilations(log)) == 1


@needs_compiler
@pytest.mark.parametrize(
    ("name", "value"),
    [("FLAGS", (*compiler.FLAGS, "-O1")), ("TARGETS", ((),)), ("_machine", lambda: "another")],
)
def test_what_a_library_depends_on_is_in_its_name(name, value, monkeypatch):
    library = build(adds(6))
    monkeypatch.setattr(compiler, name, value)
    assert build(adds(6)) != library


@needs_compiler
def test_words_of_cxx_are_used_and_told_apart(monkeypatch):
    source = adds("NUMBER")
    for number in (7, 8):
        monkeypatch.setenv("CXX", f"{PATH_COMPILER.command[0]} -DNUMBER={number}")
        assert shifted(build(source)) == number


# --- Locks ------------------------------------------------------------------------------------------------------------


@needs_compiler
def test_lock_of_a_killed_process_does_not_block(folder):
    library = cache.writable_folder() / "ppl-x.so"
    hold = f"with cache.turn(cache.Path({str(library)!r}), patience=1):\n    print('held', flush=True)\n    input()"
    child = process(hold, stdin=subprocess.PIPE)
    assert child.stdout.readline() == "held\n"
    begin = time.monotonic()
    with cache.turn(library, patience=0.3):  # held by a live process: waits, then goes on alone
        assert time.monotonic() - begin > 0.25
    child.kill()
    child.wait()
    assert library.with_suffix(".lock").exists()
    begin = time.monotonic()
    with cache.turn(library, patience=30):
        assert time.monotonic() - begin < 5
    assert list(folder.iterdir()) == []
    child.communicate()


@needs_compiler
def test_unfinished_library_is_never_found(wrap, folder):
    # Half a library, and then the end that a full disk or a kill brings.
    wrap('while [ "$1" != -o ]; do shift; done; head -c 4000 /dev/zero > "$2"; kill -9 $$')
    with pytest.raises(CompileFailed):
        build(adds(9))
    assert not list(folder.glob("ppl-*"))
    wrap()
    assert shifted(build(adds(9))) == 9.0


# --- Refusals ---------------------------------------------------------------------------------------------------------


def test_no_compiler_is_one_line_of_advice(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_compiler() is None
    with pytest.raises(NoCompiler, match="install|Windows") as caught:
        build(adds(1))
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.name != "posix", reason="a shell script stands for the compiler")
def test_compiler_installed_later_is_found(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_compiler() is None
    program = tmp_path / "g++"
    program.write_text("#!/bin/sh\necho g++ 99\necho and more\n")
    program.chmod(0o755)
    assert find_compiler() == compiler.Compiler((str(program),), "g++ 99")


@needs_compiler
def test_unusable_cxx_is_passed_over(monkeypatch, caplog, tmp_path):
    silent = tmp_path / "silent"
    silent.write_text("#!/bin/sh\nexit 1\n")
    silent.chmod(0o755)
    for value in ("no-such-compiler", str(silent), "'unbalanced"):
        monkeypatch.setenv("CXX", value)
        assert find_compiler() == PATH_COMPILER
        assert value in caplog.records[-1].getMessage()


@needs_compiler
def test_broken_source_says_where(folder):
    with pytest.raises(CompileFailed, match=r"<stdin>:2:.*undeclared_name") as caught:
        build('extern "C" double shifted(double x) {\n return undeclared_name; }\n')
    assert "\n" not in str(caught.value)
    assert "undeclared_name" in caught.value.log
    assert not list(folder.glob("ppl-*"))


@needs_compiler
def test_refused_target_is_left_out_and_broken_source_is_not_tried_again(wrap):
    refuse = 'case "$*" in *=native*) cat > /dev/null; echo "error: unknown target CPU \'native\'" >&2; exit 1;; esac'
    log = wrap(refuse)
    assert shifted(build(adds(10))) == 10.0
    targets = ["-march=native" in line or "-mcpu=native" in line for line in compilations(log)]
    assert targets == [True] * (len(TARGETS) - 1) + [False]
    log.unlink()
    wrap()
    with pytest.raises(CompileFailed):
        build("no C++")
    assert len(compilations(log)) == 1


@needs_compiler
def test_hanging_compiler_is_killed_with_its_children(wrap, tmp_path, monkeypatch, folder):
    pid = tmp_path / "pid"
    wrap(f"sleep 60 & echo $! > {pid}; wait")
    monkeypatch.setattr(compiler, "COMPILER_SECONDS", 0.3)
    begin = time.monotonic()
    with pytest.raises(CompileFailed, match=r"within 0\.3 s"):
        build(adds(11))
    assert time.monotonic() - begin < 5
    wait_for(lambda: not alive(pid))
    assert not list(folder.glob("ppl-*"))


@needs_compiler
def test_interrupt_ends_the_compiler(wrap, tmp_path, folder, heard_interrupts):
    pid = tmp_path / "pid"
    wrap(f"sleep 60 & echo $! > {pid}; wait")
    child = process(f"compiler.build({adds(12)!r})", stderr=subprocess.PIPE)
    wait_for(lambda: pid.exists() and alive(pid))
    child.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in child.communicate()[1]
    wait_for(lambda: not alive(pid))
    assert not list(folder.glob("ppl-*"))


@needs_compiler
def test_infinities_and_nan_survive_the_flags():
    source = '#include <cmath>\nextern "C" double shifted(double x) { return std::isnan(x) ? 1 : x > 1e308 ? 2 : x; }\n'
    library = build(source)
    assert [shifted(library, x) for x in (math.nan, math.inf, 0.5)] == [1, 2, 0.5]
    assert shifted(library, -math.inf) == -math.inf


# --- Room -------------------------------------------------------------------------------------------------------------


@needs_compiler
def test_unused_longest_goes_first(folder, monkeypatch):
    libraries = [build(adds(number)) for number in range(4)]
    bound = sum(path.stat().st_size for path in libraries)
    monkeypatch.setattr(cache, "MAX_BYTES", bound)
    build(adds(4))
    assert all(path.exists() for path in libraries)  # too many, but all in use within the hour
    for age, path in enumerate(libraries):
        long_ago = time.time() - 10 * cache.RECENT_SECONDS - age
        os.utime(path, (long_ago, long_ago))
    build(adds(3))  # the oldest, used again
    build(adds(5))
    assert [path.exists() for path in libraries] == [True, False, False, True]
    assert cache.usage().num_bytes <= bound


@needs_compiler
def test_leftovers_go_and_what_is_not_ours_stays(folder):
    folder.mkdir(parents=True)
    names = ("ppl-old.tmp", "ppl-old.lock", "ppl-new.tmp", "thesis.so", "thesis.tmp")
    for name in names:
        (folder / name).touch()
    for name in ("ppl-old.tmp", "ppl-old.lock", "thesis.so", "thesis.tmp"):
        os.utime(folder / name, (0, 0))
    build(adds(13))
    left = {path.name for path in folder.iterdir() if path.name in names}
    assert left == {"ppl-new.tmp", "thesis.so", "thesis.tmp"}
    assert cache.clear().num_libraries == 1
    assert {path.name for path in folder.iterdir()} == left


@needs_compiler
def test_folder_that_cannot_be_written_is_replaced(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("PPL_CACHE_DIR", str(tmp_path / "file" / "below"))  # not even root can make this
    before = num_compilations()
    library, again = build(adds(14)), build(adds(14))
    assert library == again
    assert num_compilations() == before + 1
    assert shifted(library) == 14.0
    (record,) = caplog.records
    assert "PPL_CACHE_DIR" in record.getMessage()
    cache._temporary.remove()
    assert not library.parent.exists()
    assert shifted(build(adds(14))) == 14.0


@needs_compiler
def test_folder_that_can_only_be_read_is_read(monkeypatch):
    library, before = build(adds(15)), num_compilations()
    monkeypatch.setattr(cache, "can_write", lambda: False)
    assert build(adds(15)) == library
    assert num_compilations() == before
    assert build(adds(16)).parent != library.parent


def test_location_follows_the_platform(monkeypatch, tmp_path):
    monkeypatch.delenv("PPL_CACHE_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache.location() == tmp_path / "Library" / "Caches" / "ppl-verdict" / "native"
    monkeypatch.setattr(sys, "platform", "linux")
    assert cache.location() == tmp_path / ".cache" / "ppl-verdict" / "native"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.location() == tmp_path / "xdg" / "ppl-verdict" / "native"


@needs_compiler
def test_command_shows_and_empties_the_cache(folder, capsys):
    assert main(["cache"]) == 0
    assert "libraries  0\n" in capsys.readouterr().out
    size = sum(build(adds(number)).stat().st_size for number in range(2))
    assert main(["cache"]) == 0
    out = capsys.readouterr().out
    for part in (f"folder     {folder}\n", "libraries  2\n", f"size       {size / 2**20:.1f} MB\n", "256.0 MB"):
        assert part in out
    assert main(["cache", "--clear"]) == 0
    assert capsys.readouterr().out == f"Removed 2 libraries, {size / 2**20:.1f} MB, from {folder}.\n"
    assert cache.usage().num_libraries == 0
    assert list(folder.iterdir()) == []
    assert shifted(build(adds(0))) == 0.0
