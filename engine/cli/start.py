"""The entry point of the console script: light, so that Ctrl-C during the imports of the rest ends in a line."""

from __future__ import annotations

import sys

#: What a shell makes of a program that SIGINT ended: 128 + 2.
INTERRUPTED = 130


def main() -> None:
    try:
        from engine.cli.main import call

        code = call(sys.argv[1:])
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        code = INTERRUPTED
    sys.exit(code)
