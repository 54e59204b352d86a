"""Which partition a key belongs to: as Kafka's default partitioner has it, for any producer of the topic.

Not here: events without a key, which go wherever their producer likes.
"""

from __future__ import annotations

import struct

KEYS_REMEMBERED_MAX = 100_000

_MULTIPLIER = 0x5BD1E995
_SEED = 0x9747B28C
_MASK = 0xFFFFFFFF


def murmur2(data: bytes) -> int:
    """The 32-bit MurmurHash2 of ``data``, unsigned, with the seed of ``org.apache.kafka.common.utils.Utils``."""
    length = len(data)
    whole = length & ~3
    found = _SEED ^ length
    for (word,) in struct.iter_unpack("<I", data[:whole]):
        word = word * _MULTIPLIER & _MASK
        found = (found * _MULTIPLIER & _MASK) ^ ((word ^ word >> 24) * _MULTIPLIER & _MASK)
    if whole != length:
        found = (found ^ int.from_bytes(data[whole:], "little")) * _MULTIPLIER & _MASK
    found = (found ^ found >> 13) * _MULTIPLIER & _MASK
    return found ^ found >> 15


class Partitioner:
    """Partitions of keys, the last ones remembered: hashing takes microseconds here."""

    def __init__(self, partitions: int) -> None:
        self._partitions = partitions
        self._of_key: dict[bytes, int] = {}

    def partition(self, key: bytes) -> int:
        found = self._of_key.get(key)
        if found is None:
            if len(self._of_key) >= KEYS_REMEMBERED_MAX:
                self._of_key.clear()
            found = self._of_key[key] = (murmur2(key) & 0x7FFFFFFF) % self._partitions
        return found
