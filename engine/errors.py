"""Every error that headrace raises on purpose.

    HeadraceError
    ├── UserError            exit 2: the caller can mend it
    │   ├── ConfigError      a configuration with faults, all of them listed
    │   ├── HandlerError     a handler that cannot be loaded, raises, or returns what its kind does not allow
    │   │   ├── FunctionError  it raised, ended, took too long or too much, in its own process
    │   │   └── Throttled      it was not called, for want of an environment
    │   ├── DataError        records that cannot be passed and have no on-failure destination
    │   │   └── RowsRefused  rows that a sink cannot take, while it could take the others
    │   ├── SinkMismatch     a sink that belongs to another pipeline, cluster or topic, or has another schema
    │   ├── LostOffsets      the log starts beyond the sink's position
    │   └── RecreatedTopic   the topic was deleted and made anew
    ├── ExternalError        exit 3: something outside refuses or is missing
    │   ├── BrokerUnavailable
    │   ├── CorruptRecords   bytes of the log, or from the network, that are no record batch
    │   ├── SinkUnavailable  not writable, full, or locked by another process
    │   ├── RegistryUnavailable
    │   └── DestinationUnavailable
    ├── InternalError        exit 4: a bug in headrace, or a broken invariant
    └── ShardLost            no exit: another owner has taken the shard; its work goes on there

An error carries its ``domain``, from which the exit code follows, and ``retry``: whether the same
call may succeed later without anybody changing anything. Both are set where the error is raised, by
its class; supervisors act on those and never on the text.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence


class Domain(enum.IntEnum):
    """Who has to act. The value is the exit code of the command line."""

    USER = 2
    EXTERNAL = 3
    INTERNAL = 4


class HeadraceError(Exception):
    """The base of all errors raised on purpose.

    ``message`` names the thing and what is wrong with it; ``hint`` says what to do, and is shown on a
    line of its own.
    """

    domain: Domain = Domain.INTERNAL
    retry: bool = False

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n  {self.hint}"


class UserError(HeadraceError):
    domain = Domain.USER


class ConfigError(UserError):
    """A configuration that cannot be used; ``faults`` holds one line for each fault."""

    def __init__(self, source: str, faults: Sequence[str]) -> None:
        self.faults = list(faults)
        count = "1 fault" if len(self.faults) == 1 else f"{len(self.faults)} faults"
        super().__init__("\n".join([f"{source}: {count}", *(f"  {fault}" for fault in self.faults)]))


class HandlerError(UserError):
    """A function that cannot be loaded or called, or what it did. ``error_type`` is what AWS calls the fault."""

    @property
    def error_type(self) -> str:
        return type(self).__name__


class FunctionError(HandlerError):
    """An invocation that failed: the function raised, ended, took too long or too much.

    ``error_type`` is the exception's class name or a fault of the runtime (Runtime.ExitError,
    Sandbox.Timedout, ...); ``stack_trace`` has formatted frames, outermost first.
    """

    def __init__(
        self, message: str, error_type: str, stack_trace: Sequence[str] = (), *, hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self._error_type = error_type
        self.stack_trace = list(stack_trace)

    @property
    def error_type(self) -> str:
        return self._error_type


class Throttled(HandlerError):
    """The function did not run: no environment was free or could be started. No attempt is used up."""

    retry = True


class DataError(UserError):
    pass


class RowsRefused(DataError):
    """Raised by a sink's ``write`` before it has kept anything of the outcome.

    ``rows`` are indexes into the outcome's table; ``reasons`` has a sentence for each of them.
    """

    def __init__(self, rows: Sequence[int], reasons: Sequence[str]) -> None:
        assert len(rows) == len(reasons) > 0
        super().__init__(f"{len(rows)} rows cannot be stored, the first because {reasons[0]}")
        self.rows = list(rows)
        self.reasons = list(reasons)


class SinkMismatch(UserError):
    pass


class LostOffsets(UserError):
    pass


class RecreatedTopic(UserError):
    pass


class ExternalError(HeadraceError):
    domain = Domain.EXTERNAL


class BrokerUnavailable(ExternalError):
    retry = True


class CorruptRecords(ExternalError):
    """What a broker gave for ``partition`` of ``topic`` from ``offset`` on cannot be read."""

    def __init__(self, topic: str, partition: int, offset: int, reason: str) -> None:
        super().__init__(
            f"topic {topic!r}, partition {partition}: no records can be read at offset {offset}: {reason}",
            hint="look at it with kafka-dump-log; a fault of the network or of memory goes with a restart",
        )
        self.topic = topic
        self.partition = partition
        self.offset = offset
        self.reason = reason


class SinkUnavailable(ExternalError):
    pass


class RegistryUnavailable(ExternalError):
    """The schema registry is away, or answers nothing of use. It says nothing about any record."""

    retry = True


class DestinationUnavailable(ExternalError):
    retry = True


class InternalError(HeadraceError):
    domain = Domain.INTERNAL


class ShardLost(HeadraceError):
    """Another owner moved the shard's position. What this owner has not committed is to be thrown away."""
