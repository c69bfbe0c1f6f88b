"""The command line: `ppl models`, `ppl compare`, `ppl fit`, `ppl check`, `ppl cache`.

Exit status: 0 the candidate may be trusted, 1 it may not or cannot be judged, 2 the request was wrong, 130 interrupted.
Results go to stdout; remarks, warnings and progress to stderr.
"""

import argparse
import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import xarray as xr
from arviz_stats import summary

from inference.compare import compare
from inference.engine_names import KNOWN, parse_engines, reference_of
from inference.errors import InputError
from inference.fit import Engine, Fit
from inference.latent_view import latent_view
from inference.model_source import find_model
from inference.native import cache
from inference.nuts import BACKENDS
from inference.output_files import make_folder, write_comparison, write_draws, write_fit, write_view
from inference.request import Request, read_request
from inference.row_likelihood import RowLikelihood
from inference.storage import load_fit
from inference.text_table import format_number
from inference.trained import has_networks, rows_of, train
from inference.verdict import check

TRUSTED, NOT_TRUSTED, WRONG_REQUEST, INTERNAL_FAULT, INTERRUPTED = 0, 1, 2, 3, 130

ENGINES = "auto,nuts"

EPILOG = """\
exit status: 0 the candidate may be trusted, 1 it may not or cannot be judged, 2 the request was wrong.
PPL_DEBUG=1 shows the trace-back of an error."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    try:
        arguments = _parser().parse_args(argv)
        with _readable_warnings():
            return arguments.command(arguments)
    except InputError as error:
        return _complain(str(error), WRONG_REQUEST)
    except KeyboardInterrupt:
        return _complain("interrupted", INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return TRUSTED
    except Exception as error:
        text = f"internal fault, please report it: {type(error).__name__}: {error} (PPL_DEBUG=1 shows the trace-back)"
        return _complain(text, INTERNAL_FAULT)


# --- Commands ---------------------------------------------------------------------------------------------------------


def _models(arguments: argparse.Namespace) -> int:
    known = _known_models()
    width = max(map(len, known))
    for name, model in known.items():
        print(f"{name:{width}}  {model.summary}")
    return TRUSTED


def _compare(arguments: argparse.Namespace) -> int:
    model = _known_models().get(arguments.model)
    # Where a decoder may be given, as in probabilistic PCA, latents alone are left, for any engine.
    if has_networks(model) and not (arguments.engines and model.exact):
        return _compare_rows(arguments)
    engines = parse_engines(arguments.engines or ENGINES, **_settings(arguments))
    reference = reference_of(engines, arguments.reference)
    if len(engines) < 2:
        raise InputError("--engines: a comparison needs the reference and at least one more, for example auto,nuts")
    request = _read(arguments)
    fits = {name: _run(request, engine, arguments) for name, engine in engines.items()}
    comparison = compare(fits, reference=reference)
    paths = []
    if arguments.out:
        paths = [write_draws(name, _tree(fit, request), arguments.out) for name, fit in fits.items()]
        paths += write_comparison(comparison, arguments.out)
        paths += write_view(comparison.discrete, arguments.out) if comparison.discrete else []
    if arguments.json:
        _print_json({"model": arguments.model, "seed": arguments.seed, **comparison.to_dict(), "files": _texts(paths)})
    else:
        print(comparison)
        if comparison.discrete:
            print(f"\nDiscrete sites, by '{comparison.believed}':\n{comparison.discrete}")
        _print_files(paths)
    return TRUSTED if all(verdict.trusted for verdict in comparison.verdicts.values()) else NOT_TRUSTED


def _compare_rows(arguments: argparse.Namespace) -> int:
    """Train networks, score rows that they have not seen, and compare their encoder with NUTS on some of these."""
    if arguments.engines or arguments.reference or arguments.num_warmup or arguments.backend:
        raise InputError(
            f"model '{arguments.model}': is trained with its own guide, which NUTS judges row by row; leave out "
            "--engines, --reference, --num-warmup and --backend"
        )
    request = _read(arguments)
    model = request.source.model
    with request.source.blamed():
        rows = rows_of(model, request.data, bundled=request.bundled, seed=arguments.seed)
    fit = _run(replace(request, data=rows.train), None, arguments)
    view = latent_view(fit, rows.test, labels=rows.labels, seed=arguments.seed)
    comparison, paths = view.comparison, []
    if arguments.out:
        paths = [write_fit("trained", fit, arguments.out)]
        paths += [*write_comparison(comparison, arguments.out), *write_view(view, arguments.out)]
    if arguments.json:
        document = {"training": _facts(fit), "likelihood": _scores(view.likelihood), **comparison.to_dict()}
        _print_json({"model": arguments.model, "seed": arguments.seed, **document, "files": _texts(paths)})
    else:
        print(f"{fit.status.message}\n{_seconds(fit)}\n\n{view}\n")
        for name, verdict in comparison.verdicts.items():
            print(f"{name}: {verdict}\n")
        _print_files(paths)
    return TRUSTED if comparison.verdicts["encoder"].trusted else NOT_TRUSTED


def _fit(arguments: argparse.Namespace) -> int:
    name, engine = _one_engine(arguments, "nuts")
    request = _read(arguments)
    fit = _run(request, engine, arguments)
    tree = _tree(fit, request)
    # R-hat and effective sizes are for chains; independent draws have none.
    table = summary(tree, kind="all" if fit.method == "mcmc" else "stats", round_to="none")
    paths = [write_fit(name, fit, arguments.out), write_draws(name, tree, arguments.out)] if arguments.out else []
    if arguments.json:
        rows = json.loads(table.to_json(orient="index"))
        _print_json({"model": arguments.model, **_facts(fit), "summary": rows, "files": _texts(paths)})
    else:
        print(table.map(format_number).to_string())
        print(f"\n{fit.status.message}\n{_seconds(fit)}")
        for note in fit.notes:
            print(f"Note: {note}.")
        _print_files(paths)
    return TRUSTED if fit.status.ok else NOT_TRUSTED


def _check(arguments: argparse.Namespace) -> int:
    if arguments.fit:
        if arguments.data or arguments.set:
            raise InputError("--fit: a saved fit has its data; leave out --data and --set")
        fit = load_fit(arguments.fit, find_model(arguments.model, known=_known_models()).model)
    else:
        _, engine = _one_engine(arguments, "auto")
        fit = _run(_read(arguments), engine, arguments)
    verdict = check(fit)
    if arguments.json:
        _print_json({"model": arguments.model, **_facts(fit), "verdict": verdict.to_dict()})
    else:
        print(verdict)
        print(f"\n{_seconds(fit)}")
    return TRUSTED if verdict.trusted else NOT_TRUSTED


def _cache(arguments: argparse.Namespace) -> int:
    if arguments.clear:
        gone, left = cache.clear(), cache.usage()
        if left.num_libraries:
            raise InputError(
                f"--clear: {left.num_libraries} libraries in {left.folder} cannot be removed; see who owns the folder"
            )
        print(f"Removed {gone.num_libraries} libraries, {_megabytes(gone.num_bytes)}, from {gone.folder}.")
        return TRUSTED
    kept = cache.usage()
    print(f"folder     {kept.folder}\nlibraries  {kept.num_libraries}")
    print(f"size       {_megabytes(kept.num_bytes)}\nbound      {_megabytes(cache.MAX_BYTES)}")
    return TRUSTED


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.1f} MB"


def _read(arguments: argparse.Namespace) -> Request:
    """Find model and data and make the output folder, before any time is spent on a fit."""
    request = read_request(arguments.model, arguments.data, arguments.set, known=_known_models())
    for remark in request.remarks:
        _say(remark)
    if getattr(arguments, "out", None):
        make_folder(arguments.out)
    return request


def _run(request: Request, engine: Engine | None, arguments: argparse.Namespace) -> Fit:
    """Fit once; None trains the model's networks. An engine keeps what it has when interrupted; a command then ends."""
    progress = False if arguments.no_progress else None
    if engine is None:
        names = ("num_samples", "num_chains", "num_epochs")
        sizes = {name: value for name in names if (value := getattr(arguments, name)) is not None}
        with request.source.blamed():
            fit = train(request.source.model, request.data, seed=arguments.seed, progress=progress, **sizes)
    else:
        fit = request.fit(engine, seed=arguments.seed, progress=progress)
    if fit.status.kind == "interrupted":
        raise KeyboardInterrupt
    return fit


def _tree(fit: Fit, request: Request) -> xr.DataTree:
    return fit.to_datatree()


def _one_engine(arguments: argparse.Namespace, usual: str) -> tuple[str, Engine | None]:
    """Give the engine asked for, else the usual one, which for models with networks is their training (None)."""
    if arguments.engine is None and has_networks(_known_models().get(arguments.model)):
        return "trained", None
    engines = parse_engines(arguments.engine or usual, **_settings(arguments))
    if len(engines) != 1:
        raise InputError(f"--engine: expected one engine, got {', '.join(engines)}")
    return next(iter(engines.items()))


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Give the settings of engines by name."""
    if arguments.num_epochs:
        raise InputError(
            "--num-epochs: is for models with networks, trained with their own guide; leave it out, or the engine"
        )
    return {key: getattr(arguments, key) for key in ("num_samples", "num_warmup", "num_chains", "backend")}


def _known_models() -> dict[str, Any]:
    from ppl_models import MODELS  # the only place where the one package looks into the other

    return MODELS


# --- Output -----------------------------------------------------------------------------------------------------------


def _facts(fit: Fit) -> dict[str, Any]:
    status = {"kind": fit.status.kind, "ok": fit.status.ok, "message": fit.status.message}
    return {
        "engine": repr(fit.engine),
        "seed": fit.seed,
        "status": status,
        "seconds": fit.seconds,
        "num_gradients": fit.num_gradients,
        "notes": list(fit.notes),
    }


def _scores(likelihood: RowLikelihood) -> dict[str, Any]:
    """Nats per row, with their Monte Carlo errors."""
    return {
        "log_p": likelihood.mean,
        "log_p_se": likelihood.mean_se,
        "elbo": float(likelihood.elbo.mean()),
        "num_samples": likelihood.num_samples,
        "rows": len(likelihood.rows),
        "rows_with_high_khat": int(likelihood.poor.sum()),
    }


def _seconds(fit: Fit) -> str:
    parts = ", ".join(f"{name} {seconds:.2f}" for name, seconds in fit.seconds.items())
    return f"Seconds: {sum(fit.seconds.values()):.2f} ({parts}); {fit.num_gradients} gradients."


def _texts(paths: Sequence[Path]) -> list[str]:
    return [str(path) for path in paths]


def _print_files(paths: Sequence[Path]) -> None:
    if paths:
        print("\nWritten:", ", ".join(_texts(paths)))


def _print_json(document: dict[str, Any]) -> None:
    print(json.dumps(document, indent=2, allow_nan=False))


def _say(message: str) -> None:
    print(f"ppl: {message}", file=sys.stderr)


def _complain(message: str, status: int) -> int:
    if os.environ.get("PPL_DEBUG") == "1":
        traceback.print_exc()
    _say(" ".join(message.split()))
    return status


@contextmanager
def _readable_warnings() -> Iterator[None]:
    """Show warnings and log records as single lines on stderr; leave out what only concerns developers."""
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    handler.setFormatter(logging.Formatter("ppl: %(message)s"))
    logger = logging.getLogger("inference")
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
                warnings.simplefilter("ignore", category)
            warnings.showwarning = lambda message, *_, **__: _say(" ".join(str(message).split()))
            yield
    finally:
        logger.removeHandler(handler)


# --- Arguments --------------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line, like every other."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")


def _parser() -> _Parser:
    parser = _Parser(
        prog="ppl",
        description="Posteriors of Pyro models by variational inference and NUTS, and whether to trust them.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    models = commands.add_parser("models", help="list the models that come with the package")
    models.set_defaults(command=_models)

    compare = commands.add_parser("compare", help="fit with several engines and say which may be trusted")
    _add_common(compare)
    compare.add_argument("--engines", help=f"comma-separated (default {ENGINES}); known: {KNOWN}")
    compare.add_argument("--reference", help="the engine to believe, after judging it first (default nuts)")
    _add_out(compare, "report.html, draws as NetCDF, figures")
    compare.set_defaults(command=_compare)

    fit = commands.add_parser("fit", help="fit with one engine and print a summary")
    _add_common(fit)
    fit.add_argument("--engine", help=f"default nuts; known: {KNOWN}")
    _add_out(fit, "the fit and its draws as NetCDF")
    fit.set_defaults(command=_fit)

    check = commands.add_parser("check", help="fit with one engine and judge it without MCMC")
    _add_common(check)
    check.add_argument("--fit", type=Path, metavar="FILE", help="judge this fit, which `ppl fit --out` saved")
    check.add_argument("--engine", help=f"default auto; known: {KNOWN}")
    check.set_defaults(command=_check)

    kept = commands.add_parser("cache", help="show where compiled models are kept, or remove them")
    kept.add_argument("--clear", action="store_true", help="remove them all; they are compiled again when needed")
    kept.set_defaults(command=_cache)
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a name from `ppl models`, or path/to/file.py:function")
    parser.add_argument("--data", type=Path, metavar="FILE", help=".json, .npz or .csv; default: the model's own data")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a number or a word for the model, repeatable"
    )
    parser.add_argument(
        "--seed", type=_whole(0), default=0, metavar="N", help="equal seeds give equal results (default 0)"
    )
    parser.add_argument("--num-samples", type=_whole(1), metavar="N", help="draws per chain")
    parser.add_argument("--num-warmup", type=_whole(1), metavar="N", help="warm-up draws per chain, NUTS only")
    parser.add_argument("--num-chains", type=_whole(1), metavar="N", help="chains")
    parser.add_argument(
        "--num-epochs", type=_whole(1), metavar="N", help="passes over the data, for models with networks only"
    )
    parser.add_argument(
        "--backend", choices=BACKENDS, metavar="B", help=f"how densities run: {', '.join(BACKENDS)} (default auto)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout, for machines")
    parser.add_argument("--no-progress", action="store_true", help="no progress bars, not even on a terminal")


def _add_out(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"folder for {what}")


def _whole(least: int) -> Any:
    def whole(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"expected a whole number from {least}, got '{text}'")
        return value

    return whole
