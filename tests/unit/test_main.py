"""The command line's own words: what it says to arguments that it does not take."""

from __future__ import annotations

import pytest

from engine.cli.main import call
from engine.errors import Domain


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nosuch"], "No such command 'nosuch'"),
        (["run", "--bogus"], "No such option: --bogus"),
        (["run"], "Missing argument 'FILE'"),
        (["invoke", "a.b", "events", "--batch-size", "many"], "Invalid value for '--batch-size'"),
        (["position", "nosuch"], "No such command 'nosuch'"),
    ],
)
def test_wrong_arguments_are_the_users(arguments: list[str], said: str, capfd: pytest.CaptureFixture[str]) -> None:
    """A line that says what is wrong and where help is, exit code 2, and no traceback."""
    assert call(arguments) == Domain.USER
    shown = capfd.readouterr().err
    assert said in shown
    assert "--help" in shown
    assert "Traceback" not in shown


def test_help_teaches_every_command(capfd: pytest.CaptureFixture[str]) -> None:
    """Each command is in the first page, and has a page of its own with an example or its options."""
    assert call(["--help"]) == 0
    first = capfd.readouterr().out
    for command in ("run", "check", "invoke", "filter", "produce", "query", "report", "demo", "position", "dlq"):
        assert f"headrace {command}" in first
        assert call([command, "--help"]) == 0
        assert "Usage:" in capfd.readouterr().out
