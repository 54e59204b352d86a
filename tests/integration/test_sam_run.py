"""`headrace check` and `headrace run` over SAM templates, as processes; and `--reload` while records flow."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import time
import tomllib
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from connectors.kafka.broker import Broker
from tests.integration.support import POLL_SECONDS, SECONDS_MAX, Project, Running

TopicFactory = Callable[..., Awaitable[str]]

SAMPLE = Path(__file__).parents[1] / "samples" / "sam" / "orders"
MAPS = ("--topic", "replay-stream-arn=replays", "--on-failure", "FailedOrders=kafka://failed")

broker_test = pytest.mark.broker
slow = pytest.mark.slow


@pytest.fixture
def sample(tmp_path: Path) -> Project:
    """The sample of four functions, and no broker."""
    shutil.copytree(SAMPLE, tmp_path, dirs_exist_ok=True)
    return Project(tmp_path, "127.0.0.1:1")


# Without a broker


@slow
async def test_check_shows_what_a_template_becomes(sample: Project) -> None:
    """TOML with every default, one table for each event; environment variables are asterisks."""
    async with sample.command("check", "template.yaml", *MAPS) as running:
        ended = await running.ended()
    assert ended.code == 0, ended.err
    shown = tomllib.loads(ended.out)
    assert list(shown["pipelines"]) == [
        "OrdersFunction-Orders",
        "OrdersFunction-Replays",
        "PaymentsFunction-Payments",
        "ClicksFunction-Msk",
        "ClicksFunction-Own",
        "NativeFunction-Orders",
    ]
    orders = shown["pipelines"]["OrdersFunction-Orders"]
    assert orders["source"]["topic"] == "orders-dev"
    assert orders["function"]["root"] == str((sample.directory / "src").resolve())
    assert orders["function"]["environment"]["STAGE"] == "**********"
    assert "ignored: OrdersFunction.Policies: " in ended.err


@slow
@pytest.mark.parametrize("command", ["run", "check"])
async def test_what_cannot_be_honoured_is_refused_before_anything_starts(sample: Project, command: str) -> None:
    """Both faults by name, each with the option that helps, exit 2."""
    async with sample.command(command, "template.yaml") as running:
        ended = await running.ended()
    assert ended.code == 2
    assert "error: template.yaml asks for what headrace cannot honour\n  OrdersFunction.Events.Orders." in ended.err
    assert "\n  OrdersFunction.Events.Replays.Stream: ImportValue replay-stream-arn" in ended.err
    assert "\n  --allow-unsupported runs the template without all that" in ended.err
    assert "Traceback" not in ended.err


@slow
async def test_it_is_left_out_when_that_is_allowed(sample: Project) -> None:
    """It is listed all the same, and the rest is there."""
    async with sample.command("check", "template.yaml", "--json", "--allow-unsupported") as running:
        ended = await running.ended()
    assert ended.code == 0, ended.err
    assert "warning: unsupported, left out: OrdersFunction.Events.Replays.Stream" in ended.err
    assert len(json.loads(ended.out)["pipelines"]) == 5


@slow
async def test_options_of_templates_are_for_templates(sample: Project) -> None:
    """With a headrace.toml they are refused, exit 2."""
    sample.write("headrace.toml", "")
    async with sample.command("check", "headrace.toml", "--parameter", "Stage=hush") as running:
        ended = await running.ended()
    assert ended.code == 2
    assert "headrace.toml is no template" in ended.err
    assert "hush" not in ended.err
    assert "Traceback" not in ended.err


# With a broker


TEMPLATE = """
Transform: AWS::Serverless-2016-10-31
Globals:
  Function:
    Runtime: python3.12
    Timeout: 30
    ReservedConcurrentExecutions: 1
    Environment: {Variables: {CALLS: !Ref Calls}}
Parameters:
  Calls: {Type: String}
Resources:
  Clicks: {Type: AWS::Kinesis::Stream}
  Streams:
    Type: AWS::Serverless::Function
    Properties:
      CodeUri: src
      Handler: app.handler
      Events:
        Clicks:
          Type: Kinesis
          Properties:
            Stream: !GetAtt Clicks.Arn
            StartingPosition: TRIM_HORIZON
            BatchSize: 10
            FilterCriteria: {Filters: [{Pattern: '{"data": {"id": [{"exists": true}]}}'}]}
"""

KAFKA = """
  Kafka:
    Type: AWS::Serverless::Function
    Properties:
      CodeUri: src
      Handler: app.kafka
      Events:
        Views:
          Type: SelfManagedKafka
          Properties:
            KafkaBootstrapServers: [{bootstrap}]
            Topics: [{topic}]
"""

HANDLER = """
import base64, json, os

VERSION = %s

def note(ids):
    with open(os.environ["CALLS"], "a") as file:
        file.writelines(f"{VERSION} {id}\\n" for id in ids)

def handler(event, context):
    note(json.loads(base64.b64decode(record["kinesis"]["data"]))["id"] for record in event["Records"])

def kafka(event, context):
    for records in event["records"].values():
        note(json.loads(base64.b64decode(record["value"]))["id"] for record in records)
"""


def ids(numbers: range) -> list[bytes]:
    return [b'{"id": %d}' % number for number in numbers]


class Calls:
    """What the handlers noted: a version and an id for each record they were given."""

    def __init__(self, project: Project) -> None:
        self.path = project.directory / "calls"

    def read(self) -> list[tuple[int, int]]:
        if not self.path.exists():
            return []
        lines = self.path.read_text().splitlines()
        return [(int(version), int(number)) for version, number in map(str.split, lines)]

    async def has(self, done: Callable[[list[tuple[int, int]]], bool], running: Running) -> None:
        deadline = time.monotonic() + SECONDS_MAX
        while not done(self.read()):
            assert time.monotonic() < deadline, running.err
            assert running.process.returncode is None, running.err
            await asyncio.sleep(POLL_SECONDS)


@pytest.fixture
def project(tmp_path: Path, broker: Broker) -> Project:
    (tmp_path / "src").mkdir()
    made = Project(tmp_path, broker.bootstrap)
    made.write("src/app.py", HANDLER % 1)
    return made


@broker_test
@slow
async def test_a_template_runs_until_caught_up(project: Project, topic: TopicFactory) -> None:
    """Two functions, two topics: each record once, what the filter lets go by not at all; then nothing is left."""
    clicks, views = await topic(), await topic()
    project.write("template.yaml", TEMPLATE + KAFKA.format(bootstrap=project.bootstrap, topic=views))
    await project.produce(clicks, {0: [*ids(range(25)), b'{"other": 1}']})
    await project.produce(views, {0: ids(range(100, 107))})
    calls = Calls(project)
    arguments = ("--parameter", f"Calls={calls.path}", "--topic", f"Clicks={clicks}", "--until-caught-up")
    async with project.command("run", "template.yaml", *arguments) as running:
        ended = await running.ended()
    assert ended.code == 0, ended.err
    assert sorted(number for _, number in calls.read()) == [*range(25), *range(100, 107)]
    async with project.command("run", "template.yaml", *arguments) as running:
        ended = await running.ended()
    assert ended.code == 0, ended.err
    assert len(calls.read()) == 32, "the group offsets stand where the first run ended"


@broker_test
@slow
async def test_code_that_changes_while_records_flow_loses_none(project: Project, topic: TopicFactory) -> None:
    """Two changes, one of them to code that does not start: each record once and in order, the last by new code."""
    name = await topic()
    project.write("template.yaml", TEMPLATE)
    calls = Calls(project)
    sent = 0
    stopping = asyncio.Event()

    async def produce() -> None:
        nonlocal sent
        while not stopping.is_set():
            await project.produce(name, {0: ids(range(sent, sent + 5))})
            sent += 5

    arguments = (
        "--bootstrap",
        project.bootstrap,
        "--parameter",
        f"Calls={calls.path}",
        "--topic",
        f"Clicks={name}",
    )
    # As users have it: Python may write bytecode, unless the environments say otherwise.
    env = {"PYTHONDONTWRITEBYTECODE": ""}
    async with (
        project.command("run", "template.yaml", "--reload", *arguments, env=env) as running,
        asyncio.TaskGroup() as tasks,
    ):
        tasks.create_task(produce())
        try:
            await calls.has(lambda found: len(found) >= 20, running)
            await running.says("--reload: watching")
            project.write("src/app.py", HANDLER % 2)
            await calls.has(lambda found: found[-1][0] == 2, running)
            await running.says("Streams-Clicks: app.py changed; new invocations run the new code")
            project.write("src/app.py", "def handler(event, context:\n")
            await running.says("Streams-Clicks: app.py changed but does not start; the old code goes on")
            before = len(calls.read())
            await calls.has(lambda found: len(found) > before + 20, running)
            project.write("src/app.py", HANDLER % 3)
            await calls.has(lambda found: found[-1][0] == 3, running)
        finally:
            stopping.set()
        running.signal(signal.SIGTERM)
        ended = await running.ended()
        assert ended.code == 0, ended.err
    async with project.command("run", "template.yaml", "--until-caught-up", *arguments) as running:
        ended = await running.ended()
    assert ended.code == 0, ended.err
    found = calls.read()
    assert [number for _, number in found] == list(range(sent))
    versions = [version for version, _ in found]
    assert versions == sorted(versions)
    assert set(versions) == {1, 2, 3}
    # Python takes bytecode for current when the second and the size of the source are: a stale version would run.
    assert not (project.directory / "src" / "__pycache__").exists()
