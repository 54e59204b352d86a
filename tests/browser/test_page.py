"""The page in a real browser: what it shows, what can be done with it, and that it goes on after a restart."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import WAIT_MS, Open, Serve, World

ROOT = Path(__file__).parents[2]

expect.set_options(timeout=WAIT_MS)

pytestmark = pytest.mark.slow


def number(text: str) -> float:
    """A figure as the page writes it."""
    found = re.match(r"([\d,.]+)( k| M)?", text)
    assert found, f"{text!r} is no figure"
    return float(found[1].replace(",", "")) * {None: 1, " k": 1e3, " M": 1e6}[found[2]]


def live(page: Page) -> None:
    expect(page.locator("#connection")).to_have_attribute("data-state", "live")


def test_shows_pipelines_and_live_rates(open_page: Open, url: str, world: World) -> None:
    """The overview has each pipeline with topic, function, sink, and the rate at which it really moves."""
    page = open_page(url)
    live(page)
    rows = page.locator(".pipelines tbody tr")
    expect(rows).to_have_count(3)
    expect(rows.nth(0)).to_contain_text("clicks (kinesis)")
    expect(rows.nth(1)).to_contain_text("duckdb /data/warehouse.duckdb orders")
    expect(rows.nth(2)).to_contain_text("as it is")
    rate = rows.nth(0).locator("td[data-label='records/s']")
    expect(rate).to_have_text(re.compile(r"\d"))
    now = time.time()
    after, before = (world._status(at).pipelines[0].records for at in (now, now - 0.5))
    assert number(rate.inner_text()) == pytest.approx((after - before) / 0.5, rel=0.02)
    lag = rows.nth(0).locator("td[data-label='lag']")
    first = lag.inner_text()
    expect(lag).not_to_have_text(first)
    expect(page.locator("#health")).to_contain_text("orders")  # whose shard 3 has stopped
    page.get_by_role("button", name="Reasons").click()
    expect(page.locator(".health-list li").first).to_contain_text("division by zero")
    expect(page.locator(".plot svg.main-svg").first).to_be_visible()


def test_shards_are_sorted_and_filtered(open_page: Open, url: str) -> None:
    """The shards' table sorts by any column, and shows those alone that somebody has to look at."""
    page = open_page(url, "pipeline/orders")
    cells = page.locator(".grid tbody tr:not(.spacer):visible td:first-child")
    expect(cells.first).to_have_text("0")
    page.get_by_role("button", name="partition").click()
    expect(page.locator("th[aria-sort=descending]")).to_have_text("partition")
    expect(cells.first).to_have_text("11")
    page.get_by_role("button", name="records", exact=True).click()
    records = page.locator(".grid tbody tr:not(.spacer):visible td:nth-child(7)").all_inner_texts()
    figures = [number(each) for each in records]
    assert figures == sorted(figures, reverse=True)
    page.get_by_label("Show").select_option("not running")
    expect(cells).to_have_text(["3"])
    expect(page.locator(".grid tbody")).to_contain_text("division by zero")


def test_goes_on_after_the_engine_restarts(open_page: Open) -> None:
    """When the engine dies the page says that its figures are old; when it is back they go on, without a reload."""
    process, url = _world(0)
    try:
        page = open_page(url, expected=r"ERR_CONNECTION|ERR_INCOMPLETE|ERR_EMPTY")
        live(page)
        page.evaluate("window.loaded = 'once'")
        since = page.locator(".view-head .about")
        expect(since).to_contain_text(f"process {process.pid}")
        process.send_signal(signal.SIGKILL)
        process.wait()
        expect(page.locator("#connection")).to_have_attribute("data-state", "waiting")
        expect(page.locator("body[data-stale]")).to_have_count(1)
        process, again = _world(int(url.rsplit(":", 1)[1]))
        assert again == url
        live(page)
        expect(page.locator("#notes")).to_contain_text("The engine has restarted")
        expect(since).to_contain_text(f"process {process.pid}")
        expect(page.locator("body[data-stale]")).to_have_count(0)
        expect(page.locator("td[data-label='records/s']").first).to_have_text(re.compile(r"\d"))
        assert page.evaluate("window.loaded") == "once"
    finally:
        process.kill()
        process.wait()


def _world(port: int) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-m", "tests.web_world", "--port", str(port), "--still"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout as output:
        return process, output.readline().strip()


def test_a_failed_record_is_text_and_is_replayed(open_page: Open, url: str, world: World) -> None:
    """What a failed record holds is shown and never run; it is sent again once; new ones wait to be shown."""
    evil = '<img src=x onerror="window.broken = 1">'
    world.fail(value=b"\x00\xff binary")
    world.fail(pipeline="orders", value=b"not to be replayed")
    entry = world.fail(value=evil.encode())
    page = open_page(url, "failures")
    expect(page.locator(".failures tbody tr").first).to_contain_text(f"0:{entry.offset}")
    value = page.locator("section[aria-label=value] pre")
    assert value.inner_text() == evil
    assert page.locator("main img, main script").count() == 0
    assert page.evaluate("window.broken === undefined")

    replay, result = page.get_by_role("button", name="Replay"), page.locator(".replay-result")
    replay.click()
    expect(result).to_have_text(re.compile("Sent to clicks.retry"))
    replay.click()
    expect(result).to_have_text(re.compile("earlier replay has sent it"))

    page.get_by_label("Filter").fill("not to be")
    page.locator(".failures button").first.click()
    expect(value).to_have_text("not to be replayed")
    expect(replay).to_be_disabled()
    expect(result).to_contain_text("set source.destination_config.on_failure")
    page.get_by_label("Filter").fill(f"0:{entry.offset - 2}")
    page.locator(".failures button").first.click()
    expect(value).to_contain_text("00 ff 20 62 69 6e 61 72 79")

    page.get_by_label("Filter").fill("")
    before = page.locator(".failures tbody tr").count()
    world.fail(value=b"the latest one")
    page.get_by_role("button", name="Show 1 new").click()
    expect(page.locator(".failures tbody tr")).to_have_count(before + 1)


def test_sql_is_run_shown_and_downloaded(open_page: Open, url: str) -> None:
    """An answer is a table with its nulls and aligned numbers, a chart, and a file; the query is kept for later."""
    page = open_page(url, "sql")
    text = page.get_by_label("SQL", exact=True)
    expect(text).to_have_value("SELECT * FROM clicks LIMIT 100")
    text.fill("SELECT page, _offset, amount, nothing FROM clicks ORDER BY _offset")
    text.press("Control+Enter")
    rows = page.locator(".rows tbody tr")
    expect(rows).to_have_count(1_000)
    expect(page.get_by_text("The first 1,000 rows; a download has all of them")).to_be_visible()
    cells = rows.nth(3).locator("td")
    expect(cells).to_have_text(["page-3", "3", "4.5", "null"])
    assert [each.evaluate("(cell) => getComputedStyle(cell).textAlign") for each in cells.all()[:3]] == [
        "left",
        "right",
        "right",
    ]
    with page.expect_download() as download:
        page.get_by_role("button", name="Download CSV").click()
    lines = Path(download.value.path()).read_text().splitlines()
    assert (lines[0], lines[4], len(lines)) == ("page,_offset,amount,nothing", "page-3,3,4.5,", 2_501)
    assert download.value.suggested_filename.endswith(".csv")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download Parquet").click()
    assert Path(download.value.path()).read_bytes()[:4] == b"PAR1"
    page.get_by_role("button", name="Chart").click()
    expect(page.locator(".plot.tall svg.main-svg").first).to_be_visible()
    expect(page.locator(".plot.tall")).to_have_attribute("aria-label", re.compile("_offset by page"))
    page.reload()
    page.get_by_label("Earlier").select_option(index=1)
    expect(text).to_have_value("SELECT page, _offset, amount, nothing FROM clicks ORDER BY _offset")


def test_a_query_is_cancelled_and_a_mistake_is_pointed_at(open_page: Open, url: str, world: World) -> None:
    """Escape ends a query at the engine; a mistake is told, with the cursor where it is."""
    page = open_page(url, "sql", expected="status of 4(00|09)")
    text = page.get_by_label("SQL", exact=True)
    expect(text).to_have_value(re.compile("SELECT"))
    began, cancelled = time.monotonic(), len(world.cancelled)
    text.fill("SELECT sleep(60)")
    text.press("Control+Enter")
    expect(page.get_by_text("Running,")).to_be_visible()
    text.press("Escape")
    expect(page.get_by_role("alert")).to_have_text("the query was cancelled")
    assert time.monotonic() - began < 30
    assert len(world.cancelled) == cancelled + 1
    text.fill("SELECT page,\n  amount\nFORM clicks WHERE")
    page.get_by_role("button", name="Run").click()
    expect(page.get_by_role("alert")).to_contain_text("syntax error")
    assert "\nFORM clicks WHERE\n     ^" in page.get_by_role("alert").inner_text()
    assert text.evaluate("(it) => it.value.slice(it.selectionStart, it.selectionEnd)") == "clicks"


def test_logs_are_searched_and_followed(open_page: Open, url: str, world: World) -> None:
    """Lines come as they are printed, REPORT lines as figures; a search narrows both."""
    world.say("needle <b>one</b>")
    page = open_page(url, "logs")
    lines = page.locator(".log-lines li")
    expect(lines.last).to_contain_text("needle <b>one</b>")
    report = "REPORT RequestId: 8f5\tDuration: 12.31 ms\tBilled Duration: 13 ms\tMemory Size: 128 MB"
    world.say(f"{report}\tMax Memory Used: 61 MB", "platform")
    expect(lines.last).to_contain_text("took 12.31 ms billed 13 ms memory 61 MB of 128 MB request 8f5")
    page.get_by_label("Search").fill("NEEDLE")
    expect(lines).to_have_count(1)
    world.say("hay")
    world.say("needle two")
    expect(lines).to_have_count(2)
    for each in range(200):
        world.say(f"needle {each}")
    expect(lines.last).to_have_text(re.compile("needle 199"))
    expect(lines.last).to_be_in_viewport()


def test_login(open_page: Open, serve: Serve) -> None:
    """Where a token is set the page asks for it, and keeps it nowhere."""
    token = "a-token-for-tests-only"
    page = open_page(serve(World(), token=token), expected="status of 401")
    field = page.get_by_label("Token")
    field.fill("something else altogether")
    field.press("Enter")
    expect(page.get_by_role("alert")).to_have_text("That is not the token.")
    assert page.locator(".pipelines").count() == 0 or page.locator(".pipelines tbody tr").count() == 0
    field.fill(token)
    field.press("Enter")
    live(page)
    expect(page.locator(".pipelines tbody tr")).to_have_count(2)
    kept = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])")
    assert token not in kept
    assert page.evaluate("document.documentElement.outerHTML").find(token) == -1
    page.reload()
    live(page)


def test_keyboard_alone(open_page: Open, url: str) -> None:
    """All is reached by keys, the focus is always seen, and `?` lists the shortcuts."""
    page = open_page(url)
    live(page)
    seen = []
    for _ in range(13):
        page.keyboard.press("Tab")
        name, outline = page.evaluate(
            "[document.activeElement.textContent.trim() || document.activeElement.ariaLabel,"
            " getComputedStyle(document.activeElement).outlineStyle]"
        )
        seen.append(name)
        assert outline != "none", f"the focus on {name!r} cannot be seen"
    assert seen[:6] == ["Skip to the content", "headrace", "Overview", "Failed records", "SQL", "Logs"]
    assert {"clicks", "orders", "audit", "As a table"} <= set(seen)
    assert seen[-1] == "As a table"
    page.keyboard.press("Enter")
    expect(page.get_by_role("region", name="Figures of the charts").get_by_role("row")).to_have_count(61)
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_contain_text("failed records")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.keyboard.press("f")
    expect(page.get_by_role("heading", level=1)).to_have_text("Failed records")
    page.locator(".failures button").first.focus()
    page.keyboard.press("ArrowDown")
    expect(page.locator(".failures tbody tr").nth(1)).to_have_attribute("data-open", "yes")
    page.keyboard.press("s")
    page.keyboard.press("/")
    expect(page.locator("#sql-text")).to_be_focused()
    page.keyboard.press("l")  # typed, not a shortcut
    expect(page.get_by_role("heading", level=1)).to_have_text("SQL")


def test_a_hidden_page_does_no_work(open_page: Open, url: str, world: World) -> None:
    """A page that nobody sees listens to nothing, and comes back by itself, with what it has missed."""
    page = open_page(url)
    live(page)
    hide = """(hidden) => {
      Object.defineProperty(document, 'hidden', {value: hidden, configurable: true});
      document.dispatchEvent(new Event('visibilitychange'));
    }"""
    page.evaluate(hide, True)
    expect(page.locator("#connection")).to_have_attribute("data-state", "paused")
    world.say("a line")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    lag = page.locator("td[data-label='lag']").first
    before = lag.inner_text()
    page.wait_for_timeout(600)  # six statuses that nobody hears
    assert lag.inner_text() == before
    assert asked == []
    page.evaluate(hide, False)
    live(page)
    expect(lag).not_to_have_text(before)
    page.goto(f"{url}/#/logs")
    expect(page.locator(".log-lines li").first).to_be_visible()
    page.evaluate(hide, True)
    world.say("said to nobody")
    page.evaluate(hide, False)
    expect(page.locator(".log-lines li").last).to_contain_text("said to nobody")


def test_a_thousand_shards_are_smooth(open_page: Open, serve: Serve) -> None:
    """Updating 1,000 shards takes below 16 ms of scripting, and adds no element, however long it goes on."""
    many = World(shards=1_000, pipelines=1, step_seconds=0.25, age_seconds=60.0)
    page = open_page(serve(many), "pipeline/clicks")
    live(page)
    expect(page.locator("table.grid")).to_have_attribute("aria-rowcount", "1001")
    expect(page.locator(".plot svg.main-svg")).to_have_count(18)  # three for each of six charts
    box = page.locator(".grid-box")
    box.evaluate("(box) => { box.scrollTop = 15000; }")
    expect(page.locator(".grid tbody tr:not(.spacer) td:first-child").filter(has_text="505")).to_be_visible()
    page.get_by_role("button", name="records/s").click()
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable")

    def metrics() -> dict[str, float]:
        session.send("HeapProfiler.collectGarbage")
        return {each["name"]: each["value"] for each in session.send("Performance.getMetrics")["metrics"]}

    count = "document.querySelectorAll(':not(.plot *)').length"
    elements = page.evaluate(count)
    costs, first = [], metrics()
    last = first
    for _ in range(3):
        made = many.made
        while many.made < made + 4:
            page.wait_for_timeout(100)
        now = metrics()
        costs.append((now["ScriptDuration"] - last["ScriptDuration"]) / 4 * 1e3)
        last = now
    print(f"1,000 shards: {min(costs):.1f} to {max(costs):.1f} ms of scripting an update")
    assert min(costs) < 16
    assert page.evaluate(count) == elements < 1_500
    # Each update writes hundreds of cells anew: what is replaced must not be kept. Charts vary by some nodes.
    assert last["Nodes"] < first["Nodes"] + 1_000
