"""The entry point of the console script: light, so that Ctrl-C during the imports of the rest ends in a line."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys

#: What a shell makes of a program that SIGINT ended: 128 + 2.
INTERRUPTED = 130


#: Python's collector looks for cycles after so many new objects. An event of 1,000 records has 2,000 and no cycle:
#: with the default of 700 a tenth of the time that such functions take goes into looking.
COLLECT_AFTER_OBJECTS = 50_000

#: glibc's option for how many heaps threads are spread over (malloc.h).
M_ARENA_MAX = -8


def main() -> None:
    prepare()
    try:
        from engine.cli.main import call

        code = call(sys.argv[1:])
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        code = INTERRUPTED
    sys.exit(code)


def prepare() -> None:
    """Have memory allocated and collected as an engine needs it; to be called before Arrow is imported.

    All threads allocate from two heaps, Arrow's buffers too. Batches are made in one thread and let go in another;
    allocators that keep memory for each thread hold several times what is in use then: a quarter less memory and
    processor time were measured with 64 shards. What the variables of Arrow and glibc say goes first.
    """
    gc.set_threshold(COLLECT_AFTER_OBJECTS, 10, 10)
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's, which nobody here multiplies matrices with
    if "MALLOC_ARENA_MAX" not in os.environ:
        with contextlib.suppress(AttributeError, OSError):  # another C library than glibc
            ctypes.CDLL(None).mallopt(M_ARENA_MAX, 2)


if __name__ == "__main__":
    main()
