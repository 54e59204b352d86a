"""Handlers that `awslambdaric` runs in the tests."""

import base64
import os
import sys
import time
from pathlib import Path


def data_of(event):
    return [base64.b64decode(record["kinesis"]["data"]).decode() for record in event["Records"]]


def handler(event, context):
    values = data_of(event)
    if "fail" in values:
        raise TypeError("the record says so: ü")
    if "exit" in values:
        os._exit(3)
    if "late" in values:
        time.sleep(3600)
    print("saw", len(values))
    return {"values": values, "requestId": context.aws_request_id, "arn": context.invoked_function_arn}


def echo(event, context):
    return event


def seen(event, context):
    return {
        "aws_request_id": context.aws_request_id,
        "function_name": context.function_name,
        "function_version": context.function_version,
        "invoked_function_arn": context.invoked_function_arn,
        "memory_limit_in_mb": context.memory_limit_in_mb,
        "log_group_name": context.log_group_name,
        "log_stream_name": context.log_stream_name,
        "client_context": context.client_context,
        "tenant_id": context.tenant_id,
        "identity": [context.identity.cognito_identity_id, context.identity.cognito_identity_pool_id],
        "remaining": context.get_remaining_time_in_millis(),
        "environment": dict(os.environ),
        "cwd": str(Path.cwd()),
    }


def large(event, context):
    return "x" * (7 * 1024 * 1024)


def bytes_(event, context):
    return b"\x00\xff"


def unserialisable(event, context):
    return object()


def deep(event, context):
    return deep(event, context)


def stops(event, context):
    sys.exit(0)


def crash(event, context):
    os.kill(os.getpid(), 11)


def late(event, context):
    print("begun")
    time.sleep(3600)


def grows(event, context):
    if "grow" in data_of(event):
        grows.held = b"x" * 64_000_000


def forks(event, context):
    child = os.fork()
    if child == 0:
        time.sleep(3600)
    return {"child": child}


def forks_apart(event, context):
    child = os.fork()
    if child == 0:
        time.sleep(3600)
    os.setpgid(child, child)
    return {"child": child}


def floods(event, context):
    for _ in range(2000):
        sys.stdout.write("y" * 4000 + "\n")
    return "done"
