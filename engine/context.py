"""The context object that a Lambda handler gets as its second argument.

Attributes and methods are those of AWS's Python runtime (its public runtime interface client and the
developer guide, "AWS Lambda context object in Python").
"""

from __future__ import annotations

import random
import sys
import time
import uuid
from dataclasses import dataclass, field


def _request_id() -> str:
    # Not secret, and without uuid4's system call, which gives up the interpreter lock.
    return str(uuid.UUID(int=random.getrandbits(128), version=4))


@dataclass(frozen=True, slots=True)
class CognitoIdentity:
    """Always present; both attributes are None where no Cognito identity calls, as on AWS."""

    cognito_identity_id: str | None = None
    cognito_identity_pool_id: str | None = None


@dataclass(frozen=True, slots=True)
class Context:
    """One invocation's context. ``deadline_ms`` is milliseconds since the epoch.

    ``memory_limit_in_mb`` is a string, as on AWS, where it is the raw environment variable.
    """

    function_name: str
    memory_limit_in_mb: str
    deadline_ms: int
    aws_request_id: str = field(default_factory=_request_id)
    function_version: str = "$LATEST"
    invoked_function_arn: str = ""
    log_group_name: str = ""
    log_stream_name: str = ""
    tenant_id: str | None = None
    client_context: object | None = None
    identity: CognitoIdentity = field(default_factory=CognitoIdentity)

    def get_remaining_time_in_millis(self) -> int:
        """Milliseconds until the deadline, never below 0."""
        return max(0, self.deadline_ms - int(time.time() * 1000))

    def log(self, message: str) -> None:
        """Write a message to the function's log, without a line end of its own, as on AWS."""
        sys.stdout.write(message)
