"""The program inside of an environment for Python: loads a handler, then calls it, one invocation after the other.

A program of its own, started by file name with ``python -P``: it imports the standard library and the handler.

    child.py SOCKET ENGINE ARN

``SOCKET`` is the number of the file descriptor that the engine is at (`wire`), ``ENGINE`` its process id, ``ARN``
the function's; the rest is in AWS's environment variables (developer guide, "Defined runtime environment
variables"). What a handler raises is reported as AWS's Python client does; what ends the process is left to end it.

Not here: how long an invocation may take, how much memory it may have, and what becomes of its output (the engine).
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

#: Of a handler's answer (AWS: 6 MB of 1024 KB). Also in `contract`, which is more than this program needs.
PAYLOAD_BYTES_MAX = 6 * 1024 * 1024
#: Of an error's message, and frames of its stack.
MESSAGE_CHARACTERS_MAX = 64 * 1024
FRAMES_MAX = 200

PR_SET_PDEATHSIG = 1

Handler = Callable[[object, object], object]
Build = Callable[..., dict[str, object]]
Error = dict[str, object]

_OWN_ROOT = str(Path(__file__).parents[2])
_OWN_PACKAGES = ("engine", "functions")


class Fault(Exception):
    """What AWS's runtime refuses: an error type of its own, and no frames of its own."""

    def __init__(self, error_type: str, message: str, trace: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.error_type = error_type
        self.trace = list(trace)


def own(name: str) -> ModuleType:
    """A module of headrace's, without a trace: a function may have packages called functions and engine itself."""
    theirs = {key: sys.modules.pop(key) for key in list(sys.modules) if key.partition(".")[0] in _OWN_PACKAGES}
    path = sys.path
    sys.path = [_OWN_ROOT, *path]
    try:
        return importlib.import_module(name)
    finally:
        sys.path = path
        for key in list(sys.modules):
            if key.partition(".")[0] in _OWN_PACKAGES:
                del sys.modules[key]
        sys.modules.update(theirs)


def main(arguments: list[str]) -> int:
    """Initialise, then serve until the engine is gone."""
    connection = socket.socket(fileno=int(arguments[0]))
    connection.set_inheritable(False)
    if not _end_with(int(arguments[1])):
        return 1
    os.register_at_fork(after_in_child=connection.close)  # what a handler forks cannot answer for it
    environment = _Environment(connection, arguments[2])
    if not environment.initialise(os.environ["_HANDLER"]):
        return 1
    environment.serve()
    return 0


def _end_with(engine: int) -> bool:
    """Have the kernel end this process with the engine; false when that is gone already."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    return os.getppid() == engine


class _Environment:
    """One process's side of the invocations."""

    def __init__(self, connection: socket.socket, arn: str) -> None:
        self._wire: Any = own("functions.environments.wire")
        self._inside: Any = own("functions.environments.inside")
        self._connection = connection
        self._pid = os.getpid()
        self._output = self._inside.Output()
        self._log = self._inside.set_up_logging()
        self._arn = arn
        self._builds: dict[str, Build] = {}
        self._handler: Handler | None = None
        self._runner: Any = None

    def initialise(self, handler: str) -> bool:
        """Load the handler and say so, or what is wrong with it."""
        try:
            self._handler = load(handler)
        except Exception as error:
            described = describe(error, "")
            self._inside.log_error(described)
            self._answer({"id": "", "error": True}, json.dumps(described).encode())
            return False
        gc.collect()
        gc.freeze()  # what is there now stays; the collector need not look at it again
        self._answer({"id": ""}, b"")
        return True

    def serve(self) -> None:
        """Take invocations until the engine is gone."""
        while (request := self._wire.receive(self._connection)) is not None:
            header, body = request
            del request
            self._log.request_id = header["id"]
            self._invoke(header, body)
            self._log.request_id = ""

    def _invoke(self, header: Mapping[str, Any], body: bytes) -> None:
        clock = time.perf_counter_ns
        begin = clock()
        os.environ["_X_AMZN_TRACE_ID"] = header.get("trace") or self._inside.trace_id()
        context = self._inside.LambdaContext(header["id"], header["deadline"], self._arn)
        reply: dict[str, object] = {"id": header["id"]}
        payload = b""
        try:
            event = self._event(header, body)
            built = clock()
            assert self._handler is not None
            response = self._handler(event, context)
            if hasattr(response, "__await__"):
                response = self._await(response)
            handled = clock()
            payload, is_typed = marshalled(response, self._wire.TAG, self._wire.TAG_TEXT)
            reply["times"] = (built - begin, handled - built, clock() - handled)
            reply["typed"] = is_typed
        except Exception as error:
            described = describe(error, header["id"])
            self._inside.log_error(described)
            reply["error"], payload = True, json.dumps(described).encode()
        self._answer(reply, payload)

    def _event(self, header: Mapping[str, Any], body: bytes) -> dict[str, object]:
        kind = header["kind"]
        build = self._builds.get(kind)
        if build is None:
            build = self._builds[kind] = own(f"functions.kinds.{kind}").build_event
        gc.disable()  # thousands of objects, none of them garbage
        try:
            columns = self._wire.columns(header, body)
            event = build(header["envelope"], header["partition"], *columns)
        finally:
            gc.enable()
        event.update(header["extra"])
        return event

    def _await(self, response: Any) -> object:
        """The result of an asynchronous handler, on one loop that is kept."""
        import asyncio

        if self._runner is None:
            self._runner = asyncio.Runner()

        async def wait() -> object:
            return await response

        return self._runner.run(wait())

    def _answer(self, header: Mapping[str, object], payload: bytes) -> None:
        if os.getpid() != self._pid:  # a copy that the handler has forked and let come back
            os._exit(0)
        self._output.settle()
        self._wire.send(self._connection, header, payload)


def load(spec: str) -> Handler:
    """The function that ``spec`` names, found as AWS finds it. Raises Fault, and what its module raises."""
    root = os.environ.get("LAMBDA_TASK_ROOT") or str(Path.cwd())
    sys.path.insert(0, root)
    if _OWN_ROOT not in sys.path:
        sys.path.append(_OWN_ROOT)  # functions that come with headrace
    separator = ":" if ":" in spec else "."
    name, found, attribute = spec.removeprefix("./").rpartition(separator)
    if not found:
        message = f"Bad handler '{spec}': not enough values to unpack (expected 2, got 1)"
        raise Fault("Runtime.MalformedHandlerName", message)
    if name.split(".")[0] in sys.builtin_module_names:
        message = f"Cannot use built-in module {name} as a handler module"
        raise Fault("Runtime.BuiltInModuleConflict", message)
    try:
        module = importlib.import_module(name.replace("/", "."))
    except ImportError as error:
        raise Fault("Runtime.ImportModuleError", f"Unable to import module '{name}': {error}") from error
    except SyntaxError as error:
        place = f'  File "{error.filename}" Line {error.lineno}\n    {error.text}'
        message = f"Syntax error in module '{name}': {error}"
        raise Fault("Runtime.UserCodeSyntaxError", message, [place]) from error
    try:
        return getattr(module, attribute)  # type: ignore[no-any-return]
    except AttributeError:
        message = f"Handler '{attribute}' missing on module '{name}'"
        raise Fault("Runtime.HandlerNotFound", message) from None


def describe(error: BaseException, request_id: str) -> Error:
    """AWS's error object: message, type, request id, and the frames from the function's own on."""
    if isinstance(error, Fault):
        kind, trace = error.error_type, error.trace
    else:
        kind, trace = type(error).__name__, _frames(error.__traceback__)
    try:
        message = str(error)
    except Exception as second:
        message = f"its text cannot be had: {type(second).__name__}"
    return {
        "errorMessage": message[:MESSAGE_CHARACTERS_MAX],
        "errorType": kind[:MESSAGE_CHARACTERS_MAX],
        "requestId": request_id,
        "stackTrace": [line[:MESSAGE_CHARACTERS_MAX] for line in trace],
    }


def _frames(trace: TracebackType | None) -> list[str]:
    frames = traceback.extract_tb(trace)
    own_files = (__file__, *(module.__file__ for name, module in _asyncio()))
    first = next((i for i, frame in enumerate(frames) if frame.filename not in own_files), 0)
    frames = traceback.StackSummary.from_list(frames[first:])
    if len(frames) > FRAMES_MAX:  # of a recursion without end: how it came to be is told by the last ones as well
        frames = traceback.StackSummary.from_list([*frames[: FRAMES_MAX // 2], *frames[-FRAMES_MAX // 2 :]])
    return traceback.format_list(frames)


def _asyncio() -> list[tuple[str, ModuleType]]:
    return [(name, module) for name, module in list(sys.modules.items()) if name.startswith("asyncio.")]


def marshalled(response: object, tag: str, tag_text: str) -> tuple[bytes, bool]:
    """An answer as JSON, and whether values in its rows are tagged (`wire`). Raises Fault."""
    if isinstance(response, bytes):
        payload, is_typed = response, False
    else:
        try:
            payload, is_typed = _json(response, tag, tag_text)
        except Exception as error:  # what a value of the handler's own raises as well
            raise Fault("Runtime.MarshalError", f"Unable to marshal response: {error}") from error
    if len(payload) > PAYLOAD_BYTES_MAX:
        message = (
            f"Response payload size ({len(payload)} bytes) exceeded maximum allowed payload size "
            f"({PAYLOAD_BYTES_MAX} bytes)."
        )
        raise Fault("Function.ResponseSizeTooLarge", message)
    return payload, is_typed


def _json(response: object, tag: str, tag_text: str) -> tuple[bytes, bool]:
    if not isinstance(response, dict) or "rows" not in response:
        return _encoded(json.dumps(response, default=_decimal, ensure_ascii=False)), False
    tags = _Tags(tag)
    rows = json.dumps(response["rows"], default=tags, ensure_ascii=False)
    if rows.count(tag_text) != tags.count:
        raise ValueError(f"{tag!r} is headrace's own and cannot be in a row")
    rest = {key: value for key, value in response.items() if key != "rows"}
    text = json.dumps(rest, default=_decimal, ensure_ascii=False)
    if tags.count and tag_text in text:
        raise ValueError(f"{tag!r} is headrace's own and cannot stand beside rows")
    return _encoded(f'{text[:-1]}{", " if rest else ""}"rows": {rows}}}'), tags.count > 0


def _encoded(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which JSON has as an escape only
        return json.dumps(json.loads(text)).encode()


def _decimal(value: object) -> object:
    if _is(value, "decimal", "Decimal"):
        return float(value)  # type: ignore[arg-type]
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def _is(value: object, module: str, name: str) -> bool:
    """Whether it is of that type; one whose module nobody has imported has no instances."""
    return module in sys.modules and isinstance(value, getattr(sys.modules[module], name))


class _Tags:
    """Makes values that JSON has no type for objects that it has. Counts them."""

    def __init__(self, tag: str) -> None:
        self._tag = tag
        self.count = 0

    def __call__(self, value: Any) -> object:
        self.count += 1
        return {self._tag: self._text(value)}

    @staticmethod
    def _text(value: Any) -> tuple[str, str]:
        if _is(value, "datetime", "datetime"):
            return "datetime", value.isoformat()
        if _is(value, "datetime", "date"):
            return "date", value.isoformat()
        if _is(value, "datetime", "time"):
            return "time", value.isoformat()
        if _is(value, "datetime", "timedelta"):
            return "timedelta", str((value.days * 86_400 + value.seconds) * 1_000_000 + value.microseconds)
        if _is(value, "decimal", "Decimal"):
            return "Decimal", str(value)
        if _is(value, "uuid", "UUID"):
            return "UUID", str(value)
        if isinstance(value, bytes | bytearray | memoryview):
            from base64 import b64encode

            return "bytes", b64encode(value).decode("ascii")
        raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
