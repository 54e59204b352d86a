"""What peers are installed from: locks that hold versions and SHA-256 sums, and no address.

``requirements.lock`` is pip's, resolved by ``uv pip compile`` from ``requirements.in``; ``jars.lock`` has a line
``group:name:version bytes sha256`` for each jar that ``jars.in`` names, all of them, since nothing is resolved
further. `python -m benchmarks.peers.locks NAME...` makes the locks of peers anew.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from connectors.kafka.broker.jars import Jar, fetch_with_jgo

HERE = Path(__file__).parent
RESOLVE_SECONDS_MAX = 600.0
_PACKAGE = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", re.MULTILINE)
#: Universal, so that one lock serves every Python that the project runs on; no address of any index in it.
_RESOLVE = (
    *("pip", "compile", "requirements.in", "--universal", "--python-version", "3.11", "--generate-hashes"),
    *("--no-annotate", "--no-header", "--quiet"),
    *("--output-file", "requirements.lock"),
)


def read_packages(folder: Path) -> dict[str, str]:
    """Package to version of a peer's ``requirements.lock``; nothing where there is none."""
    path = folder / "requirements.lock"
    return dict(_PACKAGE.findall(path.read_text("utf-8"))) if path.exists() else {}


def read_jars(folder: Path) -> list[Jar]:
    """The jars of a peer's ``jars.lock``; nothing where there is none."""
    path = folder / "jars.lock"
    if not path.exists():
        return []
    jars = []
    for line in path.read_text("utf-8").splitlines():
        coordinates, size_bytes, sha256 = line.split()
        group, name, version = coordinates.split(":")
        jars.append(Jar(group, name, version, int(size_bytes), sha256))
    return jars


def lock(folder: Path) -> None:
    """Resolve a peer's requirements and jars anew. Raises `subprocess.CalledProcessError`, or jgo's failure."""
    if (folder / "requirements.in").exists():
        command = [sys.executable, "-m", "uv", *_RESOLVE]
        subprocess.run(command, cwd=folder, check=True, timeout=RESOLVE_SECONDS_MAX)
    if (folder / "jars.in").exists():
        wanted = (folder / "jars.in").read_text("utf-8").split()
        (folder / "jars.lock").write_text("".join(_lock_line(coordinates) for coordinates in wanted), "utf-8")


def _lock_line(coordinates: str) -> str:
    group, name, version = coordinates.split(":")
    with tempfile.TemporaryDirectory() as directory:
        path = fetch_with_jgo(Jar(group, name, version, 0, ""), Path(directory))
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        print(f"{coordinates}: {path.stat().st_size / 1e6:.1f} MB", file=sys.stderr)
        return f"{coordinates} {path.stat().st_size} {sha256}\n"


if __name__ == "__main__":
    for name in sys.argv[1:]:
        lock(HERE / name)
