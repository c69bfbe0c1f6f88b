"""What a command leaves in its output folder: draws as NetCDF, figures as PNG, the report, the fit itself."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt

from inference.compare import Comparison
from inference.errors import InputError
from inference.fit import Fit
from inference.plots import comparison_figures

FIGURE_DPI = 120  # readable on a screen, about 100 kB a figure


def make_folder(path: Path) -> Path:
    """Make the output folder, before any time is spent on a fit that could not be written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out '{path}': cannot make this folder ({error.strerror})") from error
    return path


def write_draws(fits: Mapping[str, Fit], folder: Path, *, coords: Mapping[str, list]) -> list[Path]:
    """Write one NetCDF file for each fit, named after its engine."""
    paths = []
    for name, fit in fits.items():
        path = folder / f"{_file_name(name)}.nc"
        fit.to_datatree(coords=coords).to_netcdf(path, engine="h5netcdf")
        paths.append(path)
    return paths


def write_fit(name: str, fit: Fit, folder: Path, *, coords: Mapping[str, list]) -> list[Path]:
    """Write a fit twice: whole, for `load_fit` and ``ppl check``, and its draws for ArviZ."""
    path = folder / f"{_file_name(name)}.fit"
    fit.save(path)
    return [path, *write_draws({name: fit}, folder, coords=coords)]


def write_comparison(comparison: Comparison, folder: Path) -> list[Path]:
    """Write the report and its figures."""
    report = folder / "report.html"
    comparison.to_html(report)
    figures = folder / "figures"
    figures.mkdir(exist_ok=True)
    paths = [report]
    for name, figure in comparison_figures(comparison).items():
        paths.append(figures / f"{_file_name(name)}.png")
        figure.savefig(paths[-1], dpi=FIGURE_DPI, bbox_inches="tight")
        plt.close(figure)
    return paths


def _file_name(name: str) -> str:
    return name.replace(":", "-").replace("/", "-")
