"""The rules that keep the project readable: who may import whom, what starts without torch, how long a file may be."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "thrifty"

# Lowest first. A package may import those of earlier lines, and itself; not its neighbours on the line.
LAYERS = [
    {"spec"},
    {"catalog"},
    {"laws"},
    {"cost"},
    {"planner"},
    {"quant"},
    {"model", "data", "parallel", "compress", "optim", "lowbit", "distill"},
    {"trainer", "infer"},
    {"report"},
    {"cli"},
]
HEIGHT = {package: height for height, packages in enumerate(LAYERS) for package in packages}
# Above all layers: the package's own front door.
FRONT_DOOR = {"__init__", "__main__", "api"}
# What must start without torch, and what must not need it.
WITHOUT_TORCH_OR_NUMPY = {"spec", "catalog", "cost", "laws", "planner"}
WITHOUT_TORCH = WITHOUT_TORCH_OR_NUMPY | {"data"}
LONGEST_FILE = 450

FILES = sorted(SOURCE.rglob("*.py"))


def owner(path: Path) -> str:
    """The package that a source file belongs to, or the stem of a file beside the packages."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(source: str, package: str) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything imported anywhere in a file, also inside functions and for typing only."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                module = ".".join(filter(None, ["thrifty", package, module]))
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def breaches(source: str, package: str) -> list[str]:
    """What a file imports although its layer may not."""
    found = []
    for line, name in imports(source, package):
        top, _, rest = name.partition(".")
        inner = rest.partition(".")[0]
        if package in WITHOUT_TORCH and top == "torch":
            found.append(f"{line}: {package} must not import torch")
        if package in WITHOUT_TORCH_OR_NUMPY and top == "numpy":
            found.append(f"{line}: {package} must not import numpy")
        if top != "thrifty" or package in FRONT_DOOR or inner == package:
            continue
        if inner in FRONT_DOOR or (inner in HEIGHT and HEIGHT[inner] >= HEIGHT[package]):
            found.append(f"{line}: {package} must not import {name}")
    return found


def test_every_package_has_its_layer():
    packages = {path.name for path in SOURCE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert packages - set(HEIGHT) == set()
    assert {path.stem for path in SOURCE.glob("*.py")} - FRONT_DOOR == set()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_down_only(path):
    assert breaches(path.read_text(encoding="utf-8"), owner(path)) == []


@pytest.mark.parametrize(
    ("package", "line", "allowed"),
    [
        ("planner", "import torch", False),
        ("planner", "def f():\n    import torch.nn", False),
        ("cost", "from numpy import array", False),
        ("data", "import numpy", True),
        ("data", "from torch.utils.data import Dataset", False),
        ("model", "import torch", True),
        ("spec", "from thrifty.catalog import lookup", False),
        ("laws", "from thrifty.cost.flops import model_flops", False),
        ("cost", "from thrifty.catalog import lookup", True),
        ("model", "from thrifty.parallel import mesh", False),
        ("model", "from thrifty import parallel", False),
        ("trainer", "from thrifty.model.transformer import Transformer", True),
        ("infer", "from thrifty.trainer import checkpoint", False),
        ("report", "from thrifty import __version__", True),
        ("report", "from thrifty import api", False),
        ("report", "from .words import plural", True),
        ("cli", "import thrifty.planner.search", True),
        ("api", "from thrifty.cli import common", True),
    ],
)
def test_the_rule_itself(package, line, allowed):
    assert (breaches(line, package) == []) is allowed


@pytest.mark.parametrize("folder", ["src", "tests", "benchmarks"])
def test_no_file_is_too_long_to_read(folder):
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / folder).rglob("*.py")}
    assert {str(path): lines for path, lines in lengths.items() if lines > LONGEST_FILE} == {}


def test_tests_have_names_of_their_own():
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert {name for name in names if names.count(name) > 1} == set()


@pytest.mark.parametrize(
    "statement",
    [
        "import thrifty",
        "import thrifty.spec",
        "import thrifty.catalog.lookup",
        "import thrifty.cost.predict",
        "import thrifty.planner.request",
        "import thrifty.planner.search",
        "import thrifty.cli.main",
        "import thrifty.trainer",
        "import thrifty.trainer.run_folder",
    ],
)
def test_it_starts_without_torch(statement):
    code = f"import sys; {statement}; print(sorted({{'torch', 'numpy'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_importing_the_package_alone_is_light():
    code = "import sys; import thrifty; print(sorted({'torch', 'pydantic', 'yaml', 'typer'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
