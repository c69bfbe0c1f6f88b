"""Rows of results as Markdown tables, one for each engine, and what they add up to."""

from collections.abc import Iterable, Sequence
from math import exp, log

import numpy as np

from benchmarks.posteriordb import BEYOND_NUTS
from benchmarks.posteriordb.cell import Row
from benchmarks.tables import geometric_mean, markdown, number

HEADER = [
    *("posterior", "D", "mean error", "at", "sd ratio", "at", "quantile error", "joint (exact)"),
    *("R-hat", "min ESS", "divergent", "k-hat", "seconds", "start-up", "gradients"),
    *("ran on", "verdict", "passes", "re-weighted"),
]

# Worst error of a mean, in sds, and of an sd, as a ratio: without allowance for Monte Carlo errors.
CLOSE, ROUGH = (0.1, 0.9, 1.1), (0.25, 0.8, 1.25)
# Of bounds over seeds, in nats; from so many seeds on.
SPREAD, MIN_SEEDS = 0.1, 10
# What a verdict of trust promises.
RIGHT_IF = {"TRUST": "passes", "TRUST_REWEIGHTED": "weighted_passes"}
YES_NO = {True: "yes", False: "no", None: ""}

EXPLAINED = """
Errors are the worst over all quantities, in sds of the reference: of a mean, with its Monte Carlo error; of an \
sd, as a ratio; of a 5, 50 or 95 % quantile. Joint: sliced Wasserstein distance in the space in which the \
reference is uncorrelated, beside the distance that as many exact draws would have. Seconds are those of warm-up \
and draws, or of the optimisation and draws; start-up is reading the model, compiling, and sites that follow \
from the draws. Verdict: what `check` says without having seen the reference. A fit passes when every mean is \
within 0.1 sd plus four Monte Carlo errors and every sd within 15 %, or every quantile within 0.1 sd plus four \
errors where tails are heavy; re-weighted, when its means and sds after importance weighting are. Close: the \
worst mean within 0.1 sd and sds within 10 %; rough: 0.25 and 0.8 to 1.25; no allowance for Monte Carlo errors \
in either. Trusted: the verdict is TRUST, or TRUST_REWEIGHTED, which speaks of the re-weighted draws. References \
without draws have published means and sds only.
"""


def report(rows: Sequence[Row]) -> str:
    """Write all tables."""
    engines = list(dict.fromkeys(row["engine"] for row in rows))
    parts = [EXPLAINED.strip(), summary(rows, engines)]
    parts += [text for text in (costs(rows, engines), spreads(rows, engines)) if text]
    for engine in engines:
        mine = [row for row in rows if row["engine"] == engine]
        parts.append(f"### {engine}\n\n{table(mine)}")
        parts += [text for text in (gradients(mine), remarks(mine)) if text]
    return "\n\n".join(parts)


def summary(rows: Sequence[Row], engines: Iterable[str]) -> str:
    """Count, for each engine, what passes, and how often its verdict is wrong."""
    body = []
    for engine in engines:
        mine = [row for row in rows if row["engine"] == engine]
        done = [row for row in mine if "failed" not in row]
        trusted = [row for row in done if row["verdict"] in RIGHT_IF]
        body.append(
            [
                engine,
                f"{sum(row['passes'] for row in done)} of {len(mine)}",
                str(sum(within(row, CLOSE) for row in done)),
                str(sum(within(row, ROUGH) for row in done)),
                str(len(trusted)),
                str(sum(not row[RIGHT_IF[row["verdict"]]] for row in trusted)),
                str(sum(row["passes"] and row["verdict"] not in RIGHT_IF for row in done)),
                str(len(mine) - len(done)),
                number(geometric_mean([row["seconds"] for row in done])),
                number(geometric_mean([row["start_up_seconds"] for row in done])),
            ]
        )
    header = [
        *(
            "engine",
            "passes",
            "close",
            "rough",
            "trusted",
            "trusted but does not pass",
            "passes but not trusted",
            "failed",
        ),
        *("seconds, geometric mean", "start-up"),
    ]
    return markdown(header, body)


def within(row: Row, bounds: tuple[float, float, float]) -> bool:
    """Whether the worst mean and the worst sd are."""
    mean, low, high = bounds
    if row["mean"] is None or row["log_sd"] is None:
        return False
    return abs(row["mean"]) <= mean and log(low) <= row["log_sd"] <= log(high)


def costs(rows: Sequence[Row], engines: Iterable[str]) -> str:
    """Compare what each engine costs, with its check, to NUTS with its own on the same posterior and seed."""
    done = {(row["engine"], row["posterior"], row["seed"]): row for row in rows if "failed" not in row}
    body = []
    for engine in engines:
        pairs = [(row, done.get(("nuts", *rest))) for (name, *rest), row in done.items() if name == engine]
        pairs = [(row, nuts) for row, nuts in pairs if nuts]
        if engine == "nuts" or not pairs:
            continue
        for what, parts in (("run", ("seconds",)), ("run and start-up", ("seconds", "start_up_seconds"))):
            ratios = [
                (sum(row[part] for part in parts) + row["check_seconds"]) / sum(nuts[part] for part in parts)
                for row, nuts in pairs
            ]
            dearest = pairs[int(np.argmax(ratios))][0]
            share = np.mean(np.array(ratios) > 1)
            cells = (number(np.median(ratios)), number(max(ratios)), dearest["posterior"], f"{share:.0%}")
            body.append([engine, what, *cells])
    header = ["engine", "seconds of", "median", "largest", "at", "above 1"]
    return "Seconds, with `check`, in units of those of NUTS:\n\n" + markdown(header, body) if body else ""


def spreads(rows: Sequence[Row], engines: Iterable[str]) -> str:
    """Say how far bounds differ between seeds, where there are many."""
    body = []
    for engine in engines:
        bounds: dict[str, list[float]] = {}
        mine = [row for row in rows if row["engine"] == engine]
        for row in mine:
            if row.get("elbo") is not None:
                bounds.setdefault(row["posterior"], []).append(row["elbo"])
        spread = {name: np.ptp(np.quantile(b, [0.05, 0.95])) for name, b in bounds.items() if len(b) >= MIN_SEEDS}
        if spread:
            wide = ", ".join(f"{name} {value:.2f}" for name, value in spread.items() if value > SPREAD)
            small = f"{sum(value <= SPREAD for value in spread.values())} of {len(spread)}"
            body.append([engine, str(len(mine)), str(sum("failed" in row for row in mine)), small, wide])
    header = ["engine", "fits", "failed", f"5-95 % of the bound over seeds within {SPREAD} nats", "wider"]
    return markdown(header, body) if body else ""


def table(rows: Sequence[Row]) -> str:
    """Write the rows of one engine."""
    return markdown(HEADER, [_failed(row) if "failed" in row else _cells(row) for row in rows])


def _name(row: Row) -> str:
    return row["posterior"] if row["seed"] == 0 else f"{row['posterior']}, seed {row['seed']}"


def _failed(row: Row) -> list[str]:
    return [_name(row), str(row.get("dimension", "")), *[""] * (len(HEADER) - 5), f"failed: {row['failed']}", "no", ""]


def _cells(row: Row) -> list[str]:
    joint = f"{row['joint']:.3f} ({row['joint_expected']:.3f})" if "joint" in row else "–"
    return [
        _name(row),
        str(row["dimension"]),
        "–" if row["mean"] is None else f"{row['mean']:+.2f} ± {row['mean_se']:.2f}",
        row["mean_at"],
        "–" if row["log_sd"] is None else f"{exp(row['log_sd']):.2f}",
        row["sd_at"],
        number(row["quantile"]),
        joint,
        f"{row['rhat']:.3f}" if "rhat" in row else "",
        number(row["min_ess"]) if "min_ess" in row else "",
        str(row.get("num_divergent", "")),
        number(row["khat"]) if row.get("khat") is not None else "",
        number(row["seconds"]),
        number(row["start_up_seconds"]),
        str(row["num_gradients"]),
        row["backend"],
        row["verdict"],
        YES_NO[row["passes"]],
        YES_NO[row["weighted_passes"]],
    ]


def gradients(rows: Sequence[Row]) -> str:
    """Compare microseconds of one gradient, native and eager, where they were measured."""
    measured = [row for row in rows if "eager_microseconds" in row]
    if not measured:
        return ""
    body = []
    for row in measured:
        native, eager = row.get("native_microseconds", float("nan")), row["eager_microseconds"]
        body.append([_name(row), number(native), number(eager), number(eager / native)])
    known = [row["eager_microseconds"] / row["native_microseconds"] for row in measured if "native_microseconds" in row]
    body.append(["geometric mean", "", "", f"**{number(geometric_mean(known))}**"])
    return "Microseconds per gradient:\n\n" + markdown(["posterior", "native", "eager Pyro", "ratio"], body)


def remarks(rows: Sequence[Row]) -> str:
    """Say what does not pass, and why."""
    lines = []
    for row in rows:
        if row.get("passes") or "failed" in row:
            continue
        why = f" Expected: {BEYOND_NUTS[row['posterior']]}." if row["posterior"] in BEYOND_NUTS else ""
        lines.append(f"- {_name(row)} does not pass.{why} `check`: {row['verdict']}. {row['reason']}")
    lines += [f"- {_name(row)}: {note}" for row in rows for note in row.get("notes", ())]
    return "\n".join(lines)
