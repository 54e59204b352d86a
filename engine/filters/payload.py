"""`Payload`: what a branch of a pattern asks of a payload, and AWS's tables for what does not fit.

Not here: which key of a pattern stands for the payload (`engine.filters.criteria`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.filters.evaluate import branch_matches, leaves
from engine.filters.json_text import container
from engine.filters.pattern import Branch
from engine.filters.rules import Rule

Document = Mapping[str, Any] | list[Any]


@dataclass(frozen=True)
class Payload:
    """Rules for JSON, by their paths in it, and for a plain string; None for none."""

    json: Branch
    plain: tuple[Rule, ...] | None

    @property
    def empty(self) -> bool:
        return not self.json and self.plain is None

    def matches_leniently(self, payload: bytes | None) -> bool:
        """By the table of Kafka: rules that do not fit the payload are passed over.

        Without a value the payload is null, which is no JSON object; bytes that are no UTF-8 fit no rule.
        """
        document = container(payload)
        if document is not None:
            return self.matches(document)
        if self.plain is None:
            return True
        text: str | None = None
        if payload is not None:
            try:
                text = payload.decode()
            except UnicodeDecodeError:
                return True
        return any(rule.matches(text) for rule in self.plain)

    def matches_strictly(self, document: Document | None) -> bool:
        """By the table of Kinesis and DynamoDB: what is no JSON (None) fails where something is asked of it."""
        return not self.json if document is None else self.matches(document)

    def matches(self, document: Document) -> bool:
        """The rules for JSON alone."""
        return not self.json or branch_matches(self.json, leaves(document, self.json))


def payload_of(branch: Branch, name: str) -> Payload:
    """What a branch asks of the payload that stands under ``name``."""
    inside = {path[len(name) + 1 :]: rules for path, rules in branch.items() if path.startswith(name + ".")}
    return Payload(inside, branch.get(name))
