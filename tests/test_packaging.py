import importlib.metadata
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import inference

ROOT = Path(__file__).resolve().parents[1]


def test_wheel_holds_the_two_packages_and_nothing_else(tmp_path):
    # Built from a copy: setuptools leaves a build folder behind, and a stale one would end up in the wheel.
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("inference", "ppl_models", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        str(source),
    ]
    result = subprocess.run(build, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"inference", "ppl_models"}
    assert "inference/cli.py" in names


def test_version_is_the_installed_one():
    assert inference.__version__ == importlib.metadata.version("ppl-verdict")
