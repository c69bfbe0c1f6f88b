"""What the benchmarks' command lines have in common."""

import argparse
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from benchmarks import machine
from benchmarks.measure import Bench
from benchmarks.models import CASES
from benchmarks.peers import module


def parser(doc: str, *, models: Iterable[str] = tuple(CASES)) -> argparse.ArgumentParser:
    """Make a parser with ``--models`` and ``--out``."""
    made = argparse.ArgumentParser(description=doc.splitlines()[0])
    made.add_argument("--models", nargs="+", default=list(models), choices=list(CASES))
    made.add_argument("--out", type=Path, help="a document whose section of this name is replaced or added")
    return made


def peers_parser(doc: str, *, models: Iterable[str], peers: Iterable[str]) -> argparse.ArgumentParser:
    """Make a parser for a program that compares peers."""
    made, peers = parser(doc, models=models), list(peers)
    made.add_argument("--peers", nargs="+", default=peers, choices=peers)
    made.add_argument("--repeats", type=int, default=3)
    made.add_argument("--reuse", type=Path, help="folder of raw results: what is found there is not run again")
    made.add_argument("--again", nargs="+", default=[], choices=peers, help="peers to run although results are found")
    made.add_argument("--python", nargs="+", default=[], metavar="PEER=PATH", help="interpreter of a peer")
    made.add_argument("--time-limit", type=float, default=300.0, help="seconds for one run")
    return made


def installed(peers: Iterable[str], own: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Give the interpreters of the peers that are installed, and the names of those that are not."""
    pythons = {peer: own.get(peer, sys.executable) for peer in peers}
    absent = [peer for peer, python in pythons.items() if not machine.has(python, module(peer).REQUIRES)]
    return {peer: python for peer, python in pythons.items() if peer not in absent}, absent


def bench_of(arguments: argparse.Namespace) -> tuple[Bench, str]:
    """Make the bench that the arguments ask for, and the sentence that heads its tables."""
    pythons, absent = installed(arguments.peers, dict(pair.split("=", 1) for pair in arguments.python))
    folder = arguments.reuse or Path(tempfile.mkdtemp(prefix="ppl-benchmarks-"))
    print(f"raw results: {folder}", file=sys.stderr)
    bench = Bench(folder=folder, pythons=pythons, limit=arguments.time_limit, again=tuple(arguments.again))
    repeats = f"{arguments.repeats} repeats" if arguments.repeats > 1 else "1 repeat"
    return bench, f"{machine.described(pythons)} {repeats}. Absent: {', '.join(absent) or 'none'}."


def publish(name: str, parts: Iterable[str], out: Path | None, *, mark: str = "") -> None:
    """Print the parts of a page with the command that made it; put them into a document, too, between marks."""
    command = " ".join([f"python -m benchmarks.{name}", *sys.argv[1:]])
    text = "\n\n".join([f"`{command}`", *parts])
    print(text)
    if out:
        out.write_text(with_section(out.read_text() if out.exists() else "", mark or name, text))


def with_section(document: str, name: str, text: str) -> str:
    """Replace what stands between the marks of a section, or add it at the end."""
    first, last = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    section = f"{first}\n{text}\n{last}"
    before, found, rest = document.partition(first)
    if not found:
        return f"{document.rstrip()}\n\n{section}\n".lstrip()
    return before + section + rest.partition(last)[2]
