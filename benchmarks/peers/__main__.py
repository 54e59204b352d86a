"""`python -m benchmarks.peers install [NAME...]` makes the environments of peers; `list` says what there is."""

from __future__ import annotations

import argparse
import sys
import time

from benchmarks.peers import peers
from benchmarks.peers.environments import Environment, InstallFailed


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    install_parser = commands.add_parser("install", help="make the environments of all peers, or of those named")
    known = [peer.name for peer in peers()]
    install_parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(known))
    commands.add_parser("list", help="what peers there are, their versions and workloads")
    given = parser.parse_args(arguments)
    if given.command == "list":
        return _list()
    unknown = set(given.names) - set(known)
    if unknown:
        parser.error(f"no peer is called {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    return _install(given.names or known)


def _install(names: list[str]) -> int:
    """Each in turn; a failure is told and the next one goes on. The exit code is 1 when any failed."""
    failed = []
    for number, name in enumerate(names, start=1):
        started = time.monotonic()

        def progress(line: str, label: str = f"[{number}/{len(names)}] {name}", started: float = started) -> None:
            print(f"{label} ({time.monotonic() - started:.0f} s): {line}", flush=True)

        try:
            Environment(name).install(progress)
        except InstallFailed as error:
            progress(f"NOT INSTALLED: {error}")
            failed.append(name)
    if failed:
        print(f"not installed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _list() -> int:
    for peer in peers():
        state = "installed" if peer.is_installed() else "not installed"
        versions = ", ".join(f"{part} {version}" for part, version in peer.about["versions"].items())
        print(f"{peer.name:<14} {state:<14} {', '.join(peer.workloads):<30} {versions}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
