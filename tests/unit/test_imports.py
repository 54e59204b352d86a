"""Who may import whom: the engine knows no connector, connectors and functions know the engine alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

ROOMS = ("engine", "connectors", "functions", "benchmarks", "tests")

#: What each room may not import, by the beginning of the module's name.
FORBIDDEN = {
    "engine": ("connectors", "functions", "benchmarks", "tests", "aiokafka", "duckdb", "pyarrow.parquet"),
    "connectors": ("functions", "benchmarks", "tests", "engine.compose", "engine.cli"),
    "functions": (
        "connectors",
        "benchmarks",
        "tests",
        "engine.compose",
        "engine.cli",
        "aiokafka",
        "pyarrow.parquet",
    ),
}

#: Where the parts are put together, everything may be known.
COMPOSITION = "engine/compose/"


def imports(source: str, path: str) -> Iterator[tuple[int, str]]:
    """Line and full name of every import of a module, those inside of functions and `TYPE_CHECKING` included."""
    package = path.removesuffix(".py").split("/")[:-1]
    for node in ast.walk(ast.parse(source, path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *(node.module or "").split(".")]).strip(".")
            yield from ((node.lineno, f"{base}.{name.name}") for name in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                yield node.lineno, str(node.args[0].value)


def faults(source: str, path: str) -> list[str]:
    room = path.split("/")[0]
    if path.startswith(COMPOSITION):
        return []
    return [
        f"{path}:{line} imports {name}"
        for line, name in imports(source, path)
        for prefix in FORBIDDEN.get(room, ())
        if name == prefix or name.startswith(prefix + ".")
    ]


def modules(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("room", sorted(FORBIDDEN))
def test_a_room_imports_what_it_may(room: str) -> None:
    """Every module of the room, read and not run."""
    found = modules(room)
    assert len(found) > 10
    wrong = [fault for path in found for fault in faults(path.read_text(), path.relative_to(ROOT).as_posix())]
    assert wrong == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("engine/a.py", "import aiokafka.errors"),
        ("engine/a.py", "from connectors.memory import MemorySink"),
        ("engine/a.py", "def f():\n    import duckdb"),
        ("engine/a.py", "from pyarrow import parquet"),
        ("engine/cli/a.py", "import importlib\nimportlib.import_module('connectors.kafka')"),
        ("engine/cli/a.py", "from ...connectors import kafka"),
        ("connectors/kafka/a.py", "from functions import etl"),
        ("functions/a.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import connectors"),
    ],
)
def test_a_forbidden_import_is_found(path: str, source: str) -> None:
    """Whatever way it is written."""
    assert len(faults(source, path)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("engine/compose/a.py", "import connectors.kafka"),
        ("engine/a.py", "import pyarrow as pa\nfrom pyarrow import compute"),
        ("functions/a.py", "import duckdb\nfrom engine.protocols import Result"),
        ("connectors/a.py", "import aiokafka, duckdb, pyarrow.parquet\nimport functionsx"),
    ],
)
def test_an_allowed_import_is_none(path: str, source: str) -> None:
    """The composition root knows all; others know the engine and their own libraries."""
    assert faults(source, path) == []


@pytest.mark.parametrize("room", ["engine", "connectors", "functions"])
def test_modules_are_small_and_say_what_they_are(room: str) -> None:
    """A module has a docstring, unless it is empty, and at most 600 lines."""
    for path in modules(room):
        text = path.read_text()
        assert not text.strip() or ast.get_docstring(ast.parse(text)), f"{path} has no docstring"
        assert text.count("\n") <= 600, f"{path} is too long"
