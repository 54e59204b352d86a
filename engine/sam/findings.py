"""What is noted while a template is read. Every note names resource and property first, then why.

Never here: values of parameters or variables, which may be secret.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Findings:
    """``faults`` are the template's own; ``unsupported`` would change what happens; ``ignored`` would not."""

    _faults: dict[str, None] = field(default_factory=dict)
    _unsupported: dict[str, None] = field(default_factory=dict)
    _ignored: dict[str, None] = field(default_factory=dict)

    def fault(self, at: str, why: str) -> None:
        self._faults[f"{at}: {why}"] = None

    def unsupported(self, at: str, why: str) -> None:
        self._unsupported[f"{at}: {why}"] = None

    def ignored(self, at: str, why: str) -> None:
        self._ignored[f"{at}: {why}"] = None

    @property
    def faults(self) -> list[str]:
        return list(self._faults)

    @property
    def all_unsupported(self) -> list[str]:
        return list(self._unsupported)

    @property
    def all_ignored(self) -> list[str]:
        return list(self._ignored)
