"""What a command leaves in its output folder: draws as NetCDF, figures as PNG, the report, the fit itself."""

from pathlib import Path

import matplotlib.pyplot as plt
import xarray as xr

from inference.compare import Comparison
from inference.discrete_view import DiscreteView
from inference.errors import InputError
from inference.fit import Fit
from inference.latent_view import LatentView
from inference.plots import comparison_figures

FIGURE_DPI = 120  # readable on a screen, about 100 kB a figure


def make_folder(path: Path) -> Path:
    """Make the output folder, before any time is spent on a fit that could not be written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out '{path}': cannot make this folder ({error.strerror})") from error
    return path


def write_draws(name: str, tree: xr.DataTree, folder: Path) -> Path:
    """Write the draws of one engine as NetCDF, for ``xarray.open_datatree``."""
    path = folder / f"{_file_name(name)}.nc"
    tree.to_netcdf(path, engine="h5netcdf")
    return path


def write_fit(name: str, fit: Fit, folder: Path) -> Path:
    """Write a whole fit, for `inference.load_fit` and ``ppl check --fit``."""
    return fit.save(folder / f"{_file_name(name)}.fit")


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


def write_view(view: DiscreteView | LatentView, folder: Path) -> list[Path]:
    """Write the tables and figures of what is known of discrete sites, or of a trained latent-variable model."""
    figures = folder / "figures"
    figures.mkdir(exist_ok=True)
    paths = []
    for name, table in view.tables().items():
        paths.append(folder / f"{_file_name(name)}.csv")
        table.to_csv(paths[-1])
    for name, figure in view.figures().items():
        paths.append(figures / f"{_file_name(name)}.png")
        figure.savefig(paths[-1], dpi=FIGURE_DPI, bbox_inches="tight")
        plt.close(figure)
    return paths


def _file_name(name: str) -> str:
    return name.replace(":", "-").replace("/", "-").replace(" ", "_")
