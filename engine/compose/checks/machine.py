"""Checks of the machine and what is installed: Python, packages, compiled code, limits, memory, the clock."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import resource
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

from engine.compose.checks.finding import Case, Finding, fail, ok, skipped, warn
from engine.compose.shared import MEMORY_BYTES, instances_of_duckdb
from engine.config import EVENT_KINDS, Config
from engine.config_sinks import ParquetSinkConfig
from engine.errors import Domain, HeadraceError

PYTHON_MIN, PYTHON_END = (3, 11), (3, 14)

#: What a process takes before it has read a record: the interpreter, its libraries, threads' stacks.
BASE_BYTES = 250 * 1024 * 1024

#: Descriptors beside those of shards and environments: connections, logs, libraries.
BASE_FILES = 128

#: Of an environment: its socket, its output, and files on the way.
ENVIRONMENT_FILES = 6

#: Of an error of the kernel's estimate, in microseconds, before it is worth a word.
CLOCK_ERROR_MICROSECONDS_MAX = 1_000_000

_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9._-]+)(?:\[[^\]]*\])?\s*([^;]*?)\s*(?:;(.*))?$")
_CONDITION = re.compile(r"\s*(==|>=|<=|!=|~=|<|>)\s*([0-9][0-9A-Za-z.*+!-]*)\s*$")


def python(case: Case) -> Sequence[Finding]:
    """The interpreter is one that headrace is made for."""
    name = f"{platform.python_implementation()} {platform.python_version()} at {sys.executable}"
    if PYTHON_MIN <= sys.version_info[:2] < PYTHON_END and platform.python_implementation() == "CPython":
        return [ok(name)]
    return [fail(name, "use CPython 3.11, 3.12 or 3.13", domain=Domain.USER)]


def packages(case: Case) -> Sequence[Finding]:
    """What is installed is what headrace asks for."""
    try:
        required = metadata.requires("headrace") or []
        own = metadata.version("headrace")
    except metadata.PackageNotFoundError:
        return [skipped("headrace runs from its source and is not installed, so nobody says what it needs")]
    faults = [fault for each in required if (fault := _fault(each)) is not None]
    if faults:
        return [fail("; ".join(faults), "install headrace anew, in an environment of its own", domain=Domain.USER)]
    return [ok(f"headrace {own} with {sum('extra ==' not in each for each in required)} packages as required")]


def _fault(requirement: str) -> str | None:
    """What is wrong with one requirement's package; of conditions that are not understood, nothing."""
    found = _REQUIREMENT.match(requirement)
    marker = (found[3] or "").strip() if found is not None else ""
    if found is None or "extra" in marker or (marker.startswith("sys_platform") and sys.platform == "win32"):
        return None
    name, conditions = found[1], found[2].strip("() ")
    try:
        installed = metadata.version(name)
    except metadata.PackageNotFoundError:
        return f"{name} is not installed"
    for condition in filter(None, conditions.split(",")):
        wanted = _CONDITION.match(condition)
        if wanted is not None and not _holds(installed, wanted[1], wanted[2]):
            return f"{name} is {installed}, and {condition.strip()} is needed"
    return None


def _holds(installed: str, operator: str, wanted: str) -> bool:
    have, need = _numbers(installed), _numbers(wanted)
    length = max(len(have), len(need))
    have, need = have + (0,) * (length - len(have)), need + (0,) * (length - len(need))
    match operator:
        case "==":
            return have == need
        case "!=":
            return have != need
        case ">=" | "~=":
            return have >= need
        case "<=":
            return have <= need
        case "<":
            return have < need
        case _:
            return have > need


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"[0-9]+(?:\.[0-9]+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found is not None else ()


def duckdb(case: Case) -> Sequence[Finding]:
    """DuckDB and its extension wheels are of one version, and load."""
    import duckdb as library

    from connectors.analysis.extensions import load

    names = ("httpfs", "quack", "ducklake")
    problems = []
    with library.connect() as connection:
        for name in names:
            try:
                load(connection, name)
            except HeadraceError as error:
                problems.append(error.message.splitlines()[0])
    if problems:
        hint = " ".join(f"duckdb-extension-{name}=={library.__version__}" for name in names)
        return [fail("; ".join(problems), f"install {hint}", domain=Domain.USER)]
    return [ok(f"DuckDB {library.__version__}; {', '.join(names)} load from their wheels")]


def compiled(case: Case) -> Sequence[Finding]:
    """Compiled code can be kept, so that only the first run on a machine takes seconds for it."""
    from connectors.kafka.kernel import entries

    given = os.environ.get("NUMBA_CACHE_DIR")
    beside = Path(entries.__file__).parent / "__pycache__"
    if given:
        places = [Path(given)]
    else:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        places = [beside, home / "numba"]
    usable = next((place for place in places if writable(place)), None)
    if usable is None:
        return [
            warn(
                f"compiled code cannot be kept in {' or '.join(map(str, places))}: every start takes longer",
                "set NUMBA_CACHE_DIR to a directory that this user can write to",
            )
        ]
    kept = next(usable.rglob("*.nbi"), None) is not None
    return [
        ok(f"compiled code is kept in {usable}" + ("" if kept else "; the first run compiles for some seconds"))
    ]


def writable(place: Path) -> bool:
    """Whether a directory, or the nearest one above it that is there, can be written to; it is not tried."""
    while not place.exists():
        if place.parent == place:
            return False
        place = place.parent
    return place.is_dir() and os.access(place, os.W_OK | os.X_OK)


def open_files(case: Case) -> Sequence[Finding]:
    """The limit of open files is above what shards and environments may open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if case.config is None:
        return [ok(f"{soft:,} open files allowed")]
    wanted = BASE_FILES + sum(_files(case))
    if soft != resource.RLIM_INFINITY and soft < wanted:
        return [
            warn(
                f"{soft:,} open files allowed, up to {wanted:,} needed",
                f"ulimit -n {wanted} (the system allows {hard:,}), or LimitNOFILE= of the service",
            )
        ]
    return [ok(f"{soft:,} open files allowed, up to {wanted:,} needed")]


def _files(case: Case) -> Iterator[int]:
    for pipeline in case.pipelines.values():
        stream = case.streams.get(pipeline.source.topic)
        shards = stream.partitions if stream is not None else 1
        sink = pipeline.sink
        if isinstance(sink, ParquetSinkConfig):
            yield shards * (sink.hive_partitions_open_max if sink.partition_by else 1)
        function = pipeline.function
        if function is not None and function.kind in EVENT_KINDS:
            yield ENVIRONMENT_FILES * function.reserved_concurrency


def memory(case: Case) -> Sequence[Finding]:
    """The machine, or the container, has room for what the configuration allows."""
    limit, of = _memory_limit()
    if case.config is None:
        return [ok(f"{limit >> 20:,} MiB in {of}")]
    engine, environments = _wanted(case, case.config)
    text = (
        f"the engine may take {engine >> 20:,} MiB (engine.memory_bytes_max and its libraries)"
        + (
            f", environments {environments >> 20:,} MiB (memory_size times reserved_concurrency)"
            if environments
            else ""
        )
        + f"; {of} has {limit >> 20:,} MiB"
    )
    if engine > limit:
        return [fail(text, "lower engine.memory_bytes_max, or give the container more", domain=Domain.USER)]
    if engine + environments > limit:
        return [warn(text, "lower function.reserved_concurrency or memory_size, or give the container more")]
    return [ok(text)]


def _wanted(case: Case, config: Config) -> tuple[int, int]:
    """Bytes of the engine and of its environments, at most."""
    functions = [each.function for each in case.pipelines.values() if each.function is not None]
    instances = instances_of_duckdb(case.pipelines)
    engine = (config.engine.memory_bytes_max or MEMORY_BYTES * (1 + instances)) + BASE_BYTES
    kinds = [function for function in functions if function.kind in EVENT_KINDS]
    return engine, sum(each.memory_size * 2**20 * each.reserved_concurrency for each in kinds)


def _memory_limit() -> tuple[int, str]:
    """Bytes that this process may have, and whose limit that is."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [limit for limit in _cgroup_limits() if limit < machine]
    return (min(limits), "the container") if limits else (machine, "the machine")


def _cgroup_limits() -> Iterator[int]:
    """The limits of this process's control groups, of either version; none where there are none."""
    root = Path("/sys/fs/cgroup")
    try:
        groups = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for group in groups:
        _, controllers, path = group.split(":", 2)
        if controllers == "":
            home, name = root, "memory.max"
        elif "memory" in controllers.split(","):
            home, name = root / "memory", "memory.limit_in_bytes"
        else:
            continue
        place = home / path.lstrip("/")
        for directory in (place, *place.parents):
            try:
                text = (directory / name).read_text().strip()
            except OSError:
                text = ""
            if text.isdecimal():
                yield int(text)
            if directory == home:
                break


class _Timex(ctypes.Structure):
    """The kernel's struct timex up to what is read here, with room for the rest."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_char * 256),
    )


_UNSYNCHRONISED = 0x40  #: STA_UNSYNC


def clock(case: Case) -> Sequence[Finding]:
    """The kernel holds its clock synchronised, where it says."""
    if sys.platform != "linux":
        return [skipped("whether the clock is synchronised is only known on Linux")]
    timex = _Timex()  # modes = 0: it is read, and nothing is set
    if ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(timex)) < 0:
        return [
            skipped(f"the kernel does not say whether the clock is synchronised: {os.strerror(ctypes.get_errno())}")
        ]
    if timex.status & _UNSYNCHRONISED:
        return [
            warn(
                "the kernel does not know its clock to be synchronised; ages, AT_TIMESTAMP and windows go by it",
                "run chrony or systemd-timesyncd; a virtual machine may get its time from its host all the same",
            )
        ]
    if timex.maxerror > CLOCK_ERROR_MICROSECONDS_MAX:
        return [
            warn(f"the clock may be {timex.maxerror / 1e6:.1f} s off, says the kernel", "look at chronyc tracking")
        ]
    return [ok(f"the clock is synchronised, to {timex.maxerror / 1000:.0f} ms at most")]
