"""Tables and paragraphs for a terminal."""

import math
import textwrap
from collections.abc import Sequence

LINE_WIDTH = 110  # fits a half-screen terminal and keeps sentences readable


def format_number(value: float | None) -> str:
    """Three decimals or three digits, whichever is fewer, and a dash for nothing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if abs(value) >= 1e6:
        return f"{value:.1e}"
    if abs(value) >= 100:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def format_table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, left: Sequence[int] = (0,)) -> str:
    """Align columns: those in ``left`` to the left, the rest to the right."""
    widths = [max(len(row[i]) for row in [headings, *rows]) for i in range(len(headings))]
    lines = []
    for row in [headings, ["-" * w for w in widths], *rows]:
        cells = [
            cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def wrap(text: str) -> list[str]:
    """Break a paragraph into lines without splitting names."""
    return textwrap.wrap(text, LINE_WIDTH, break_long_words=False, break_on_hyphens=False)


def shorten(text: str, width: int) -> str:
    """Cut the middle out of a long name; its end, the index, tells quantities apart."""
    if len(text) <= width:
        return text
    tail = (width - 1) // 2
    return text[: width - 1 - tail] + "…" + text[-tail:]
