"""Neither package imports the other; only the command line may, and only inside a function."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def imports(source):
    """Every imported top-level package, with whether the import stands at module level."""
    found = set()

    def visit(node, *, lazily):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""] if not node.level else ["."]
        elif isinstance(node, ast.Call):
            function = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if function in ("import_module", "__import__") and node.args and isinstance(node.args[0], ast.Constant):
                names = [str(node.args[0].value)]
        found.update((name.split(".")[0], lazily) for name in names)
        inside = lazily or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, lazily=inside)

    visit(ast.parse(source), lazily=False)
    return found


def breaches(sources, forbidden, *, lazy_allowed=()):
    """Names of the files that import ``forbidden`` where they may not."""
    return sorted(
        name
        for name, source in sources.items()
        for package, lazily in imports(source)
        if package == forbidden and not (lazily and name in lazy_allowed)
    )


def sources_of(package):
    return {str(p.relative_to(ROOT / package)): p.read_text(encoding="utf-8") for p in (ROOT / package).rglob("*.py")}


def test_ppl_models_does_not_import_inference():
    sources = sources_of("ppl_models")
    assert len(sources) >= 8
    assert breaches(sources, "inference") == []


def test_inference_imports_ppl_models_in_the_command_line_only_and_lazily():
    assert breaches(sources_of("inference"), "ppl_models", lazy_allowed=("cli.py",)) == []


@pytest.mark.parametrize(
    "source",
    [
        "import ppl_models",
        "import numpy, ppl_models.model as m",
        "from ppl_models import MODELS",
        "def f():\n    from ppl_models.model import Model",
        "import importlib\nx = importlib.import_module('ppl_models')",
        "if True:\n    __import__('ppl_models.mixture')",
    ],
)
def test_control_a_breach_is_noticed(source):
    assert breaches({"fit.py": source}, "ppl_models", lazy_allowed=("cli.py",)) == ["fit.py"]


def test_control_the_exception_is_for_lazy_imports_of_the_command_line():
    lazy = "def f():\n    from ppl_models import MODELS"
    assert breaches({"cli.py": lazy}, "ppl_models", lazy_allowed=("cli.py",)) == []
    assert breaches({"cli.py": "from ppl_models import MODELS"}, "ppl_models", lazy_allowed=("cli.py",)) == ["cli.py"]
    assert breaches({"a.py": "from ppl_models_extra import x\ns = 'ppl_models'"}, "ppl_models") == []
