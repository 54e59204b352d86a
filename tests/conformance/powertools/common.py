"""What the functions beside this module share: reading all that a data class has, and what AWS's runtime brings."""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Iterator, Mapping
from decimal import Decimal
from enum import Enum
from functools import cached_property
from typing import Any

from aws_lambda_powertools.utilities.data_classes.common import DictWrapper

#: Of every `DictWrapper`: the event as it came, and the next record of an event, which is one of its records.
NOT_READ = {"raw_event", "record"}


def everything(value: Any) -> Any:
    """A value as JSON has it; of a data class every property, of a model every field."""
    if isinstance(value, DictWrapper):
        names = [
            name
            for name in dir(type(value))
            if not name.startswith("_")
            and name not in NOT_READ
            and isinstance(getattr(type(value), name), property | cached_property)
        ]
        return {name: everything(getattr(value, name)) for name in names}
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, bytes):
        return _text(value)
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): everything(each) for key, each in value.items()}
    if isinstance(value, list | tuple | Iterator):
        return [everything(each) for each in value]
    if hasattr(value, "model_dump"):
        return everything(value.model_dump())
    if hasattr(value, "isoformat"):
        return value.isoformat()
    return value


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return f"0x{value.hex()}"


def act_of(text: str) -> str:
    """What to do is what the first record's key says, before a dash."""
    return text.partition("-")[0]


def stand_in_for_boto3() -> None:
    """AWS's runtime has boto3, which Powertools' idempotency imports for DynamoDB; here nobody calls it."""
    if importlib.util.find_spec("boto3") is not None:
        return
    for name, members in (
        ("boto3", ()),
        ("boto3.dynamodb", ()),
        ("boto3.dynamodb.types", ("TypeDeserializer",)),
        ("botocore", ()),
        ("botocore.config", ("Config",)),
        ("botocore.exceptions", ("ClientError",)),
    ):
        module = types.ModuleType(name)
        module.__path__ = []  # type: ignore[attr-defined]  # so that it may have modules in it
        for member in members:
            setattr(module, member, type(member, (Exception,), {}))
        sys.modules[name] = module
