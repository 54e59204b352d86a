"""The kernel's machine code is kept where there is a place for it, and made anew where there is none."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from connectors.kafka.kernel import entries
from connectors.kafka.kernel.entries import compiled

WARM = "from connectors.kafka.record_batches import warm; warm()"


@pytest.mark.slow
def test_a_second_process_compiles_nothing(tmp_path: Path) -> None:
    """What the first process made lies in NUMBA_CACHE_DIR, and the second adds nothing to it."""

    def files() -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for path in tmp_path.rglob("*.nb?")}

    def run() -> None:
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
        subprocess.run([sys.executable, "-c", WARM], env=environment, check=True, timeout=120)

    run()
    made = files()
    assert any("decode" in name for name in made)
    run()
    assert files() == made


def test_without_a_place_it_is_compiled_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    """Code that cannot be kept works, and a warning says how to have it kept."""
    space: dict[str, object] = {}
    exec("def double(number):\n    return 2 * number", space)  # from no file, so there is no place beside it
    with caplog.at_level(logging.WARNING, logger="headrace.kafka"):
        double = compiled(space["double"])  # type: ignore[type-var]
    assert double(21) == 42  # type: ignore[operator]
    assert "NUMBA_CACHE_DIR" in caplog.text


def test_what_is_kept_depends_on_all_of_the_kernel() -> None:
    """Code that is kept on disk is made anew when any module that it is made of changes."""
    modules = {path.name for path in Path(entries.__file__).parent.glob("*.py")}
    assert modules - {"__init__.py", "entries.py"} == set(entries.MODULES)
