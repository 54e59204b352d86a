"""JSON as DuckDB writes it, made JSON: it has words for numbers that are not finite, which JSON has not."""

from __future__ import annotations

import re

_WORDS = re.compile(r'"(?:[^"\\]|\\.)*"|(-?(?:NaN|Infinity))')


def without_words(text: str, *, quoted: bool) -> str:
    """``NaN``, ``Infinity`` and ``-Infinity`` outside of strings become strings, or null."""
    if "NaN" not in text and "Infinity" not in text:
        return text

    def replaced(match: re.Match[str]) -> str:
        word = match[1]
        if word is None:
            return match[0]
        return f'"{word}"' if quoted else "null"

    return _WORDS.sub(replaced, text)
