"""The page over a real engine and a real broker: rates, a failure and its replay, live results, a restart."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
from playwright.sync_api import expect

from connectors.kafka.broker import Broker
from tests.browser.conftest import WAIT_MS, Open

COMMAND = (sys.executable, "-m", "engine.cli.start")

SETTINGS = """
[web]
port = %d

[pipelines.orders.source]
topic = "page-orders"
batch_size = 500
maximum_retry_attempts = 0
bisect_batch_on_function_error = true
destination_config = { on_failure = "failed.jsonl", replay = true }

[pipelines.orders.function]
kind = "kinesis"
handler = "shop.handler"

[pipelines.orders.sink]
type = "duckdb"
path = "orders.duckdb"
table = "orders"
commit_interval_max_seconds = 0.1
"""

HANDLER = """
import base64, json, pathlib

def handler(event, context):
    orders = [json.loads(base64.b64decode(record["kinesis"]["data"]))
              for record in event["Records"]]
    print("orders", [order["id"] for order in orders][:3])
    if any(order["id"] == 13 for order in orders) and not pathlib.Path("mended").exists():
        raise ValueError("thirteen <b>brings</b> bad luck")
    return {"rows": [{"id": order["id"], "amount": order["amount"]} for order in orders]}
"""

SECONDS_MAX = 60.0

expect.set_options(timeout=WAIT_MS)

pytestmark = [pytest.mark.slow, pytest.mark.broker]


class Engine:
    """`headrace run` in a directory, started again as often as is wanted."""

    def __init__(self, folder: Path, bootstrap: str) -> None:
        self._folder = folder
        self._environment = {**os.environ, "HEADRACE_BOOTSTRAP": bootstrap}
        self._process: subprocess.Popen[bytes] | None = None
        self._starts = 0
        (folder / "shop.py").write_text(HANDLER)
        self.set_port(0)

    def set_port(self, port: int) -> None:
        (self._folder / "headrace.toml").write_text(SETTINGS % port)

    def produce(self, ids: range) -> None:
        events = self._folder / "events.jsonl"
        events.write_bytes(b"".join(orjson.dumps({"id": each, "amount": each / 4}) + b"\n" for each in ids))
        command = [*COMMAND, "produce", "page-orders", str(events), "--partitions", "2"]
        subprocess.run(command, env=self._environment, check=True, capture_output=True, timeout=SECONDS_MAX)

    def start(self) -> str:
        """The page's address."""
        self._starts += 1
        said = self._folder / f"said-{self._starts}"
        with said.open("wb") as output:
            self._process = subprocess.Popen(
                [*COMMAND, "run", "headrace.toml"], cwd=self._folder, env=self._environment, stderr=output
            )
        deadline = time.monotonic() + SECONDS_MAX
        while not (found := re.search(r"the page is at (\S+)", said.read_text())):
            assert self._process.poll() is None, said.read_text()
            assert time.monotonic() < deadline, said.read_text()
            time.sleep(0.05)
        return found[1]

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()


@pytest.fixture
def engine(tmp_path: Path, broker: Broker) -> Iterator[Engine]:
    made = Engine(tmp_path, broker.bootstrap)
    yield made
    made.kill()


def test_the_page_of_a_real_run(engine: Engine, open_page: Open, tmp_path: Path) -> None:
    """Records are counted, a failed one is shown and replayed, SQL sees all of it, and a kill is survived."""
    engine.produce(range(1_000))
    url = engine.start()
    page = open_page(url, expected=r"ERR_CONNECTION|ERR_INCOMPLETE|ERR_EMPTY|status of 400")
    rows = page.locator(".pipelines tbody tr")
    expect(rows).to_have_count(2, timeout=SECONDS_MAX * 1000)  # the companion, too
    expect(rows.nth(0)).to_contain_text("orders (kinesis)")
    failed = rows.nth(0).locator("td[data-label='failed']")
    expect(failed).to_have_text("1", timeout=SECONDS_MAX * 1000)

    page.goto(f"{url}/#/sql")
    text = page.get_by_label("SQL", exact=True)
    expect(text).to_have_value(re.compile("SELECT"))
    answer = page.locator(".rows tbody tr").first.locator("td")
    text.fill("SELECT count(*), count(DISTINCT id), sum(amount) FROM orders")
    text.press("Control+Enter")
    expect(answer).to_have_text(["999", "999", str(sum(range(1_000)) / 4 - 13 / 4)])
    text.fill("INSERT INTO orders VALUES (1, 2)")
    text.press("Control+Enter")
    expect(page.get_by_role("alert")).to_contain_text("a query only reads")

    page.goto(f"{url}/#/logs")
    expect(page.locator(".log-lines li").first).to_contain_text(re.compile("orders|REPORT|INIT_START|START"))

    page.goto(f"{url}/#/failures")
    expect(page.locator("section[aria-label=value] pre")).to_have_text(re.compile(r'"id": 13\b'))
    expect(page.locator("main")).to_contain_text("thirteen <b>brings</b> bad luck")
    (tmp_path / "mended").touch()
    page.get_by_role("button", name="Replay").click()
    expect(page.locator(".replay-result")).to_have_text(re.compile(r"Sent to orders\.retry"), timeout=WAIT_MS * 2)

    page.goto(f"{url}/#/sql")
    deadline = time.monotonic() + SECONDS_MAX
    while True:
        text.fill("SELECT count(*), min(id) FROM orders_retry")
        text.press("Control+Enter")
        page.wait_for_timeout(200)  # until its first row there is no table, and the answer says so
        if answer.all_inner_texts()[:2] == ["1", "13"]:
            break
        assert time.monotonic() < deadline

    page.goto(f"{url}/#/")
    engine.kill()
    expect(page.locator("#connection")).to_have_attribute("data-state", "waiting")
    engine.set_port(int(url.rsplit(":", 1)[1]))
    engine.produce(range(1_000, 1_500))
    assert engine.start() == url
    expect(page.locator("#notes")).to_contain_text("The engine has restarted", timeout=SECONDS_MAX * 1000)
    page.goto(f"{url}/#/sql")
    deadline = time.monotonic() + SECONDS_MAX
    while answer.all_inner_texts()[:2] != ["1499", "1499"]:
        assert time.monotonic() < deadline, answer.all_inner_texts()
        text.fill("SELECT count(*), count(DISTINCT id) FROM orders")
        text.press("Control+Enter")
        page.wait_for_timeout(200)
