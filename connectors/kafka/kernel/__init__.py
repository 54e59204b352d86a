"""Record batches of a fetch response, found and taken apart by compiled code.

`walk` finds them, `plan` checks as many as can be taken at once, `decode` writes their records into Arrow buffers.
What comes in is bytes from a network: every length is checked against the end of what holds it before it is used,
and every write against the end of its buffer. Nothing is raised: a call gives a code. All functions release the
interpreter lock. Not here: decompression (`connectors.kafka.codecs`) and who owns the buffers
(`connectors.kafka.columns`).
"""

from __future__ import annotations

from connectors.kafka.kernel.entries import decode, plan, walk

__all__ = ["decode", "plan", "walk"]
