"""The arrows of the house: a file imports only from layers below its own."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "rayfm"
LAYERS = [
    {"errors"},
    {"hyperparameters", "batch"},
    {"kernels"},
    {"metrics"},
    {"distributions"},
    {"formats"},
    {"storage"},
    {"model", "reading"},
    {"progress"},
    {"training"},
    {"report"},
    {"serving"},
    {"sagemaker"},
    {"cli", "__main__"},
]
"""From the bottom up; a layer may import from itself and from those before it."""

RAY_MAY_BE_IN = {"training", "serving", "sagemaker", "cli"}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "record_pb2.py")


def part_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def level(part):
    return next(index for index, layer in enumerate(LAYERS) if part in layer)


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_file__imports_only_from_below(path):
    part = part_of(path)
    for name in imports(path):
        root, *rest = name.split(".")
        if root == "numba":
            assert part == "kernels"
        if root == "ray":
            assert part in RAY_MAY_BE_IN
        if root == "rayfm" and part != "__init__" and rest and rest[0] != "__version__":
            assert level(rest[0]) <= level(part), f"{part} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_file__cancels_no_task(path):
    """Ray 2.60 aborts the process that cancels a task which is just ending, much as in ray-project/ray#54798."""
    calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    assert "ray.cancel" not in [ast.unparse(function) for function in calls]
