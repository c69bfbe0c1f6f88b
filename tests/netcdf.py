"""What a DataTree holds, and whether it survives a NetCDF file."""

from pathlib import Path

import xarray as xr


def variables(group: xr.DataTree) -> dict[str, tuple]:
    """Dims and shape of each variable."""
    return {name: (array.dims, array.shape) for name, array in group.data_vars.items()}


def round_trip(tree: xr.DataTree, folder: Path) -> list[str]:
    """Write and read NetCDF; the groups that differ."""
    tree.to_netcdf(folder / "tree.nc", engine="h5netcdf")
    with xr.open_datatree(folder / "tree.nc", engine="h5netcdf") as again:
        again.load()
    assert set(again.children) == set(tree.children)
    dtypes = {g: {n: a.dtype.kind for n, a in tree[g].data_vars.items()} for g in tree.children}
    assert dtypes == {g: {n: a.dtype.kind for n, a in again[g].data_vars.items()} for g in again.children}
    assert {**again.attrs} == {**tree.attrs}
    return [group for group in tree.children if not tree[group].to_dataset().equals(again[group].to_dataset())]
