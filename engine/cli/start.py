"""The entry point of the console script: light, so that Ctrl-C during the imports of the rest ends in a line."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys

#: What a shell makes of a program that SIGINT ended: 128 + 2.
INTERRUPTED = 130


#: glibc's option for how many heaps threads are spread over (malloc.h).
M_ARENA_MAX = -8


def main() -> None:
    share_heaps()
    try:
        from engine.cli.main import call

        code = call(sys.argv[1:])
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        code = INTERRUPTED
    sys.exit(code)


def share_heaps() -> None:
    """Have all threads allocate from two heaps, Arrow's buffers too; to be called before Arrow is imported.

    Batches are made in one thread and let go in another. Allocators that keep memory for each thread hold several
    times what is in use then: a quarter less memory and processor time were measured with 64 shards. What the
    variables of Arrow and glibc say goes first.
    """
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    if "MALLOC_ARENA_MAX" not in os.environ:
        with contextlib.suppress(AttributeError, OSError):  # another C library than glibc
            ctypes.CDLL(None).mallopt(M_ARENA_MAX, 2)


if __name__ == "__main__":
    main()
