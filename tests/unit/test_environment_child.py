"""The parts of the program inside of an environment that need no process."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import awslambdaric.lambda_context
import pytest

from functions.environments import child, contract, inside, warden


def test_the_limits_are_the_contract_s() -> None:
    """The program does not import the contract, so it states the bound itself."""
    assert child.PAYLOAD_BYTES_MAX == contract.PAYLOAD_BYTES_MAX


def test_the_program_imports_the_standard_library_alone() -> None:
    """Also what it takes from headrace: the event modules of all kinds and the frames."""
    program = """
import sys
sys.path.insert(0, sys.argv[1])
from functions.environments import child
for name in ("wire", "inside"):
    child.own(f"functions.environments.{name}")
for name in ("kinesis", "kafka", "dynamodb", "firehose"):
    child.own(f"functions.kinds.{name}")
print(*{name.partition(".")[0] for name in sys.modules if getattr(sys.modules[name], "__file__", None)})
"""
    root = str(Path(child.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program, root], capture_output=True, text=True, check=True
    )
    assert {name for name in done.stdout.split() if name not in sys.stdlib_module_names} == {"functions"}


def test_the_context_has_all_that_aws_s_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attributes, methods and the identity's members, compared with AWS's own client."""
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "256")
    theirs = awslambdaric.lambda_context.LambdaContext("id", None, None, 0, "arn")
    ours = inside.LambdaContext("id", 0, "arn")
    names = {name for name in dir(theirs) if not name.startswith("_")}
    assert names <= set(dir(ours))
    values = [name for name in names if not callable(getattr(theirs, name)) and name != "identity"]
    assert {name: getattr(ours, name) for name in values} == {name: getattr(theirs, name) for name in values}
    assert ours.identity.cognito_identity_id is theirs.identity.cognito_identity_id is None
    assert ours.get_remaining_time_in_millis() == 0
    assert ours.w3c() == theirs.w3c()
    assert "aws_request_id=id,log_group_name=None," in repr(ours)
    ours.anything = 1  # type: ignore[attr-defined]  # handlers may


@pytest.mark.parametrize("kind", ["", "JSON"])
def test_log_lines_are_aws_s(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text or JSON, with the invocation's id; what is given as extra is in the JSON line."""
    monkeypatch.setenv("AWS_LAMBDA_LOG_FORMAT", kind)
    monkeypatch.setenv("AWS_LAMBDA_LOG_LEVEL", "INFO")
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    root = logging.getLogger()
    converter, level = logging.Formatter.converter, root.level
    handler = inside.set_up_logging()
    try:
        handler.request_id = "id-1"
        logging.getLogger("mine").info("hello %s", "you", extra={"order": 7})
        try:
            raise ValueError("no")
        except ValueError:
            logging.getLogger("mine").exception("failed")
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        logging.Formatter.converter = converter
    lines = sys.stdout.getvalue().splitlines()  # type: ignore[attr-defined]
    if not kind:
        level_text, stamp, request_id, message = lines[0].split("\t")
        assert (level_text, request_id, message, stamp[-1]) == ("[INFO]", "id-1", "hello you", "Z")
        return
    first, second = map(json.loads, lines)
    assert first.pop("timestamp").endswith("Z")
    assert first == {"level": "INFO", "message": "hello you", "logger": "mine", "requestId": "id-1", "order": 7}
    assert (second["errorType"], second["errorMessage"]) == ("ValueError", "no")


def test_answers_are_written_as_aws_s_client_writes_them() -> None:
    """Nothing tagged outside of rows, and rows last; an empty rest leaves no comma."""
    assert child.marshalled(None, "t", '"t"') == (b"null", False)
    assert child.marshalled({"rows": [b"x"]}, "t", '"t"') == (b'{"rows": [{"t": ["bytes", "eA=="]}]}', True)
    assert child.marshalled({"rows": [1], "a": 2}, "t", '"t"') == (b'{"a": 2, "rows": [1]}', False)
    with pytest.raises(child.Fault, match="is headrace's own"):
        child.marshalled({"rows": [{"t": 1}]}, "t", '"t"')


def test_the_warden_ends_groups_it_was_told_of(tmp_path: Path) -> None:
    """Those that it was told to forget live; lines that are none are passed over."""
    groups = [subprocess.Popen(["sleep", "60"], start_new_session=True) for _ in range(2)]
    lines = f"+{groups[0].pid}\n+{groups[1].pid}\nnonsense\n+1\n+\n-{groups[1].pid}\n".encode()
    try:
        command = [sys.executable, "-I", "-S", str(warden.__file__), str(os.getpid()), "no-such-mark"]
        subprocess.run(command, input=lines, timeout=10, check=True, cwd=tmp_path)
        assert groups[0].wait(5) == -9
        assert groups[1].poll() is None
    finally:
        for group in groups:
            group.kill()
            group.wait()
