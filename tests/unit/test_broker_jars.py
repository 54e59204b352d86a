"""The pinned jars: nothing unverified is used, nothing verified is fetched again."""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections import Counter
from pathlib import Path

import pytest

from connectors.kafka.broker import jars
from connectors.kafka.broker.jars import FetchFailed, Jar, Pins, ensure
from engine.errors import ExternalError

CONTENTS = {f"part{number}": f"the content of part {number}".encode() * 100 for number in range(3)}


def _pins() -> Pins:
    return Pins(
        "4.1.2",
        tuple(
            Jar("org.example", name, "1.0", len(content), hashlib.sha256(content).hexdigest())
            for name, content in CONTENTS.items()
        ),
    )


class Remote:
    """A repository that counts what is asked of it. ``bad`` are the contents of the next answers, by jar."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.bad: dict[str, list[bytes | Exception]] = {}

    def __call__(self, jar: Jar, directory: Path) -> Path:
        self.asked[jar.name] += 1
        answers = self.bad.get(jar.name, [])
        answer = answers.pop(0) if answers else CONTENTS[jar.name]
        if isinstance(answer, Exception):
            raise answer
        path = directory / "deep" / jar.file
        path.parent.mkdir()
        path.write_bytes(answer)
        return path


def test_pinned_list_names_no_address_and_each_jar_once() -> None:
    """The committed list is complete, well-formed and free of hosts."""
    pins = jars.pins()
    text = Path(jars.__file__).with_name("jars.json").read_text("utf-8")
    assert "://" not in text
    assert len({jar.file for jar in pins.jars}) == len(pins.jars) > 30
    assert all(re.fullmatch("[0-9a-f]{64}", jar.sha256) and jar.size_bytes > 0 for jar in pins.jars)
    names = {jar.name for jar in pins.jars}
    assert {"kafka_2.13", "kafka-clients", "scala-library", "log4j-slf4j-impl"} <= names
    assert {jar.version for jar in pins.jars if jar.group == "org.apache.kafka"} == {pins.kafka}


def test_first_start_fetches_all_and_second_none(tmp_path: Path) -> None:
    """What is verified once is used without a look at the network."""
    remote = Remote()
    first = ensure(_pins(), tmp_path / "cache", fetch=remote)
    assert [path.read_bytes() for path in first] == list(CONTENTS.values())
    assert remote.asked == Counter(CONTENTS.keys())
    assert ensure(_pins(), tmp_path / "cache", fetch=remote) == first
    assert remote.asked == Counter(CONTENTS.keys())
    assert not list((tmp_path / "cache").glob(".download-*"))


def test_touched_jar_is_read_again_but_not_fetched(tmp_path: Path) -> None:
    """Another modification time costs a hash and no download."""
    remote = Remote()
    path = ensure(_pins(), tmp_path, fetch=remote)[0]
    os.utime(path, (1, 1))
    ensure(_pins(), tmp_path, fetch=remote)
    assert remote.asked == Counter(CONTENTS.keys())


@pytest.mark.parametrize("damage", [lambda content: content[:50], lambda content: b"x" * len(content)])
def test_damaged_jar_in_the_cache_is_fetched_once_more(tmp_path: Path, damage: object) -> None:
    """A half-written jar, or one of the right size with other bytes, is found by its sum and replaced."""
    remote = Remote()
    path = ensure(_pins(), tmp_path, fetch=remote)[1]
    path.write_bytes(damage(CONTENTS["part1"]))  # type: ignore[operator]
    lines: list[str] = []
    ensure(_pins(), tmp_path, fetch=remote, progress=lines.append)
    assert path.read_bytes() == CONTENTS["part1"]
    assert remote.asked == Counter(CONTENTS.keys()) + Counter(["part1"])
    assert any("part1-1.0.jar" in line and "damaged" in line for line in lines)


def test_damaged_jar_is_found_without_a_stamp(tmp_path: Path) -> None:
    """A cache whose stamp was lost, or holds rubbish, is verified from its files."""
    remote = Remote()
    path = ensure(_pins(), tmp_path, fetch=remote)[0]
    path.write_bytes(b"rubbish")
    (tmp_path / jars.STAMP).write_bytes(b"[1, 2")
    ensure(_pins(), tmp_path, fetch=remote)
    assert remote.asked["part0"] == 2
    assert remote.asked["part1"] == 1


def test_download_that_comes_half_is_repeated(tmp_path: Path) -> None:
    """One bad download is made good by the second."""
    remote = Remote()
    remote.bad["part2"] = [CONTENTS["part2"][:10]]
    paths = ensure(_pins(), tmp_path, fetch=remote)
    assert paths[2].read_bytes() == CONTENTS["part2"]
    assert remote.asked["part2"] == 2


def test_jar_that_is_wrong_twice_is_one_line(tmp_path: Path) -> None:
    """Name, expected and found sum are said, and the jar is not installed; those that were right stay."""
    remote = Remote()
    remote.bad["part1"] = [b"evil", b"evil", b"evil"]
    with pytest.raises(ExternalError) as raised:
        ensure(_pins(), tmp_path, fetch=remote)
    message = raised.value.message
    assert "\n" not in message
    assert "part1-1.0.jar" in message
    assert hashlib.sha256(CONTENTS["part1"]).hexdigest() in message
    assert hashlib.sha256(b"evil").hexdigest() in message
    assert remote.asked["part1"] == 2
    assert not (tmp_path / "part1-1.0.jar").exists()
    assert (tmp_path / "part0-1.0.jar").exists()


def test_no_network_is_one_line_after_a_second_try(tmp_path: Path) -> None:
    """A repository that cannot be reached is named by what it did, never by its address."""
    remote = Remote()
    remote.bad["part0"] = [FetchFailed("no connection (ConnectTimeout)")] * 2
    with pytest.raises(ExternalError, match=r"part0-1\.0\.jar could not be downloaded: no connection") as raised:
        ensure(_pins(), tmp_path, fetch=remote)
    assert str(tmp_path) in str(raised.value)


def test_full_disk_during_a_download_is_one_line(tmp_path: Path) -> None:
    """ENOSPC from the writer of a jar becomes the line about the disk, and is not tried again."""
    remote = Remote()
    remote.bad["part0"] = [OSError(errno.ENOSPC, "No space left on device")]
    with pytest.raises(ExternalError, match=f"the disk that holds {tmp_path} is full"):
        ensure(_pins(), tmp_path, fetch=remote)
    assert remote.asked["part0"] == 1


def test_leftovers_of_a_killed_download_are_cleared(tmp_path: Path) -> None:
    """The next download removes what a killed one left behind."""
    left = tmp_path / ".download-abc"
    left.mkdir()
    (left / "half.jar").write_bytes(b"half")
    ensure(_pins(), tmp_path, fetch=Remote())
    assert not left.exists()


def test_cache_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    """A cache directory below a file is named."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ExternalError, match="cannot be written"):
        ensure(_pins(), tmp_path / "file" / "cache", fetch=Remote())


def test_cache_directory_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The cache is the user's, where the user keeps caches."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert jars.cache_directory() == tmp_path / "headrace" / "kafka"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert jars.cache_directory() == tmp_path / "home" / ".cache" / "headrace" / "kafka"
