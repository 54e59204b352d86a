"""The benchmark's peers as they are in the repository: locks, descriptions, and what each program says it can do.

Nothing of a peer is installed or run here; their results are checked by the benchmark itself.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks.peers import Peer, peers
from benchmarks.peers.__main__ import main
from benchmarks.peers.environments import Environment, InstallFailed
from benchmarks.peers.locks import HERE, read_jars, read_packages
from benchmarks.systems.job import Job

WORKLOADS = {"etl", "filter", "window", "handler"}
PEERS = pytest.mark.parametrize("peer", peers(), ids=lambda peer: peer.name)
REQUIREMENT_LOCKS = sorted(HERE.glob("*/requirements.lock"))
JAR_LOCKS = sorted(HERE.glob("*/jars.lock"))


def test_every_folder_is_a_peer_or_shared() -> None:
    """No folder is forgotten because its description is missing."""
    folders = {path.parent.name for path in HERE.glob("*/main.py")}
    assert folders == {peer.name for peer in peers()}
    assert folders >= {"faust", "quixstreams", "bytewax", "pathway", "flink", "spark"}


@pytest.mark.parametrize("path", REQUIREMENT_LOCKS, ids=lambda path: path.parent.name)
def test_requirement_locks_hold_versions_and_hashes_alone(path: Path) -> None:
    """Each requirement is pinned and has a SHA-256, and nothing in the file says where it comes from."""
    text = path.read_text("utf-8")
    requirements = [entry for entry in text.replace("\\\n", " ").splitlines() if entry.strip()]
    assert requirements
    for entry in requirements:
        assert re.match(
            r"[A-Za-z0-9._-]+(\[[a-z0-9,._-]+\])?==[^\s;]+ ( ?; [^#]+?)?( *--hash=sha256:[0-9a-f]{64})+ *$", entry
        )
    assert "/" not in text


@pytest.mark.parametrize("path", REQUIREMENT_LOCKS, ids=lambda path: path.parent.name)
def test_requirement_locks_are_of_what_is_asked_for(path: Path) -> None:
    """A version in requirements.in that was changed without locking anew is noticed."""
    locked = read_packages(path.parent)
    for line in (path.parent / "requirements.in").read_text("utf-8").splitlines():
        name, _, version = line.partition("==")
        assert locked[name.split("[")[0]].startswith(version)


@pytest.mark.parametrize("path", JAR_LOCKS, ids=lambda path: path.parent.name)
def test_jar_locks_hold_coordinates_and_sums_alone(path: Path) -> None:
    """Each jar that is asked for has its size and its SHA-256, and no address."""
    jars = read_jars(path.parent)
    wanted = (path.parent / "jars.in").read_text("utf-8").split()
    assert [f"{jar.group}:{jar.name}:{jar.version}" for jar in jars] == wanted
    assert all(jar.size_bytes > 0 and re.fullmatch("[0-9a-f]{64}", jar.sha256) for jar in jars)
    assert "/" not in path.read_text("utf-8")


@PEERS
def test_descriptions_are_complete(peer: Peer) -> None:
    """Each workload is done, with guarantee and settings, or it is said why not."""
    about = peer.about
    assert {"name", "language", "clock", "settings", "versions", "workloads", "not_done"} == set(about)
    assert set(about["workloads"]) | set(about["not_done"]) == WORKLOADS
    assert not set(about["workloads"]) & set(about["not_done"])
    assert all(about["not_done"].values())
    assert all(about["versions"].values())
    for workload in about["workloads"].values():
        assert set(workload) == {"delivery", "settings", "note", "processes", "events_share"}
        assert workload["delivery"]
        assert workload["processes"]
        assert set(workload["processes"]) <= {1, 2}
        assert 0 < workload["events_share"] <= 1


@PEERS
def test_programs_do_what_their_descriptions_say(peer: Peer) -> None:
    """The workloads that a peer's program tells apart are those of its description."""
    sources = sorted(peer.folder.glob("*.java"))
    if sources:
        told_apart = set(re.findall(r'case "(\w+)":', "".join(path.read_text("utf-8") for path in sources)))
    else:
        told_apart = _dispatched((peer.folder / "main.py").read_text("utf-8"))
    assert set(peer.workloads) == told_apart


def _dispatched(source: str) -> set[str]:
    """The keys of the one dictionary in which a program looks up the job's workload."""
    lookups = [
        node.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Dict)
    ]
    assert len(lookups) == 1
    return {key.value for key in lookups[0].keys if isinstance(key, ast.Constant)}


@PEERS
def test_no_address_is_in_a_peer(peer: Peer) -> None:
    """No file of a peer names a host."""
    for path in peer.folder.iterdir():
        if path.is_file():
            assert "://" not in path.read_text("utf-8").replace("kafka://{", "")


@PEERS
def test_commands_carry_the_job(peer: Peer) -> None:
    """The job goes by the environment; another workload or number of processes is refused by name."""
    job = {"workload": peer.workloads[0], "processes": 1}
    assert peer.command(job)[1] == str(peer.folder / "main.py")
    environment = peer.environment(job)
    assert json.loads(environment["BENCHMARK_JOB"]) == job
    assert environment["PYTHONPATH"] == str(HERE / "shared")
    with pytest.raises(ValueError, match="does not do 'other'"):
        peer.command({"workload": "other", "processes": 1})
    with pytest.raises(ValueError, match="processes only"):
        peer.command(job | {"processes": 3})


def test_the_shared_handler_adds_up_what_kinesis_events_hold() -> None:
    """The function that all peers call sees every record of an event that has AWS's members."""
    shared = _shared_module()
    records = [(2, 10 + number, b"7", 1_700_000_000_123, b'{"event_id":%d}' % number) for number in range(5)]
    event = shared.kinesis_event(records)
    first = event["Records"][0]
    assert first["kinesis"]["approximateArrivalTimestamp"] == 1_700_000_000.123
    assert first["kinesis"]["partitionKey"] == "7"
    assert first["eventID"] == "shardId-000000000002:10"
    handler = shared.Handler()
    assert handler(event, None) == {"batchItemFailures": []}
    assert (handler.events, handler.sum) == (5, 10)


def test_peers_and_harness_mean_the_same_job() -> None:
    """What the harness writes is what peers read, in the order in which Java programs get it."""
    shared = _shared_module()
    assert list(shared.Job.__dataclass_fields__) == list(Job.__dataclass_fields__)
    assert shared.Job.__annotations__ == Job.__annotations__


def _shared_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_job", HERE / "shared" / "benchmark_job.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up while they are made.
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "benchmark_job", module)
        spec.loader.exec_module(module)
    return module


def test_an_environment_is_made_once_and_again_when_its_lock_changes(tmp_path: Path) -> None:
    """A second install does nothing; another lock makes what was installed count for nothing."""
    lock = tmp_path / "peers" / "some" / "jars.lock"
    lock.parent.mkdir(parents=True)
    lock.write_text("")
    environment = Environment("some", tmp_path / "peers", tmp_path / "environments")
    said: list[str] = []
    assert not environment.is_ready()
    environment.install(said.append)
    assert environment.is_ready()
    environment.install(said.append)
    assert said == ["installed", "is installed"]
    lock.write_text("group:name:1 1 " + "0" * 64 + "\n")
    assert not environment.is_ready()


@pytest.mark.slow
def test_an_environment_that_fails_is_not_ready(tmp_path: Path) -> None:
    """Java that cannot be compiled, or no compiler, is a failure which says so and leaves no ready environment."""
    folder = tmp_path / "peers" / "some"
    folder.mkdir(parents=True)
    (folder / "Broken.java").write_text("class {")
    environment = Environment("some", tmp_path / "peers", tmp_path / "environments")
    with pytest.raises(InstallFailed, match="javac"):
        environment.install(lambda _line: None)
    assert not environment.is_ready()


def test_unknown_peers_are_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    """A name that no peer has is a usage error that lists those there are."""
    with pytest.raises(SystemExit, match="2"):
        main(["install", "nobody"])
    assert "no peer is called nobody; there are bytewax, faust" in capsys.readouterr().err
