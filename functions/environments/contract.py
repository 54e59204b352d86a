"""What the parts of the execution environments say to each other.

An `Environment` is one process (or process group) that takes one invocation at a time; a pool owns several of
them for one function. Not here: any work. Needs the standard library alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from engine.batch import Batch

EventKind = Literal["kinesis", "kafka", "dynamodb", "firehose"]

#: Of an invocation's payload, each way, in bytes (AWS: 6 MB of 1024 KB).
PAYLOAD_BYTES_MAX = 6 * 1024 * 1024

#: A cold start may take so long; then it is done over, inside of the first invocation's timeout.
INIT_SECONDS_MAX = 10.0


@dataclass(frozen=True, slots=True)
class FunctionSpec:
    """What environments of one function are started with.

    ``handler`` ("module.function") is for ``runtime = "python"``, ``command`` for ``"provided"``. ``root`` is the
    working directory and the first entry of the import path (AWS: LAMBDA_TASK_ROOT). ``variables`` are the
    user's environment variables. ``version`` tells environments of changed code apart.
    """

    name: str
    handler: str | None
    command: tuple[str, ...]
    root: Path
    timeout_seconds: float
    memory_size_mb: int
    region: str
    account: str = "000000000000"
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)
    version: int = 0

    @property
    def arn(self) -> str:
        return f"arn:aws:lambda:{self.region}:{self.account}:function:{self.name}"


@dataclass(frozen=True, slots=True)
class Request:
    """One invocation. ``deadline_ms`` is milliseconds since the epoch.

    The event is that of ``kind`` over the records of ``batch``, with ``envelope`` for what is the same for all
    records (see the event modules of `functions.kinds`) and ``extra`` as further members at its top level (a
    tumbling window's). It is built on the far side where that is Python, else by ``event_json``.
    """

    request_id: str
    deadline_ms: int
    kind: EventKind
    batch: Batch
    envelope: Mapping[str, object]
    extra: Mapping[str, object] = field(default_factory=dict)
    trace: str | None = None  #: X-Ray's form of a trace; None: the environment makes one up


@dataclass(frozen=True, slots=True)
class Report:
    """What one invocation took: AWS's REPORT line. ``init_ms`` only on a cold start; times in milliseconds.

    ``status`` other than "success" comes with an ``error_type``. ``billed_ms`` is rounded up to whole
    milliseconds, initialisation included. ``started_at`` is seconds since the epoch.
    """

    function_name: str
    request_id: str
    started_at: float
    duration_ms: float
    billed_ms: int
    memory_size_mb: int
    memory_used_mb_max: int
    init_ms: float | None = None
    status: Literal["success", "error", "timeout"] = "success"
    error_type: str | None = None


@dataclass(frozen=True, slots=True)
class Times:
    """Milliseconds of an invocation: on the way, building the event, in the handler, writing its answer."""

    transfer_ms: float
    build_ms: float
    handler_ms: float
    encode_ms: float


@dataclass(frozen=True, slots=True)
class Reply:
    """A handler's answer: the JSON text that AWS would hand back, and whether rows in it need `wire.revived`.

    ``times`` only where the environment tells them.
    """

    payload: bytes
    has_typed_values: bool = False
    times: Times | None = None


class Environment(Protocol):
    """One running environment. Belongs to the event loop that started it; one call at a time."""

    @property
    def pid(self) -> int: ...

    @property
    def is_alive(self) -> bool: ...

    async def invoke(self, request: Request) -> Reply:
        """The handler's answer. Raises `engine.errors.FunctionError`; after a fault of the process it is not alive.

        Knows of no timeout: the pool kills an environment that takes too long, and this then raises.
        """

    def memory_bytes(self) -> int:
        """Resident bytes of the process and its descendants, now."""

    async def kill(self) -> None:
        """End the whole process group and collect it. Idempotent; never raises."""


class Starter(Protocol):
    """Starts environments of one kind (Python, or any program over the Runtime API)."""

    async def start(self, spec: FunctionSpec, log: LogSink) -> Environment:
        """An environment that has initialised. Raises FunctionError with the init fault.

        ``log`` takes what the process prints, from its first byte on.
        """


class LogSink(Protocol):
    """Takes an environment's output and the platform's lines around it, for one log stream."""

    def write(self, data: bytes) -> None:
        """Bytes of the function's standard output or error, as they come; bounded by the sink."""

    def platform(self, line: str) -> None:
        """A line of the platform: START, END, REPORT, INIT_REPORT, a timeout."""


#: Hears of every invocation.
OnReport = Callable[[Report], None]
