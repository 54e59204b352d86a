"""How the page looks: nothing moves by itself, it fits a telephone, it can be read; and pictures of it."""

from __future__ import annotations

import json
import os
import re
import struct
import zlib
from pathlib import Path

import duckdb
import pytest
from playwright.sync_api import Page, expect

import tests.web_world as web_world
from tests.browser.conftest import WAIT_MS, Open, Serve, World

VIEWS = ("", "pipeline/clicks", "failures", "sql", "logs")

#: A picture of the README is not to weigh more.
PICTURE_BYTES_MAX = 300_000

expect.set_options(timeout=WAIT_MS)

pytestmark = pytest.mark.slow

#: Every visible text with less contrast than WCAG 2.2 AA asks for: [ratio, text, colour, ground].
CONTRASTS = """() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, at) => sum + c * [0.2126, 0.7152, 0.0722][at], 0);
  const ground = (node) => {
    for (let each = node; each; each = each.parentElement) {
      const found = parse(getComputedStyle(each).backgroundColor);
      if (found.length === 3 || found[3] === 1) return found;
    }
    return [255, 255, 255];
  };
  const poor = [];
  let looked = 0;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !node.checkVisibility({visibilityProperty: true})) continue;
    if (node.closest("svg, :disabled, .unseen, .skip, noscript, script")) continue;
    const style = getComputedStyle(node);
    const [a, b] = [light(parse(style.color)), light(ground(node))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    looked += 1;
    if (ratio < 4.5) {
      poor.push([ratio.toFixed(2), walker.currentNode.data.slice(0, 40), style.color, ground(node).join()]);
    }
  }
  return [looked, poor];
}"""


#: What shifts, and how often something changes.
SHIFTS = """() => {
  window.seen = {shifts: [], changes: 0};
  new PerformanceObserver((list) => seen.shifts.push(...list.getEntries().map((each) =>
    [each.value, each.sources.map((source) => source.node?.outerHTML?.slice(0, 80) ?? source.node?.data)])))
    .observe({type: 'layout-shift', buffered: false});
  new MutationObserver(() => seen.changes++)
    .observe(document.body, {subtree: true, characterData: true, childList: true});
}"""


def ready(page: Page, view: str) -> None:
    """Wait until a view has what it shows."""
    expect(page.locator("#connection")).to_have_attribute("data-state", "live")
    waited = {
        "": ".pipelines tbody tr td[data-label='records/s']",
        "failures": ".failures tbody tr",
        "sql": ".chips button",
        "logs": ".log-lines li",
    }.get(view, ".grid tbody tr:not(.spacer) td:nth-child(3)")
    expect(page.locator(waited).first).to_have_text(re.compile(r"\w"))
    if view == "" or view.startswith("pipeline"):
        charts = 2 if view == "" else 6
        expect(page.locator(".plot svg.main-svg")).to_have_count(3 * charts)


def ask(page: Page) -> None:
    """An answer in the SQL view."""
    page.get_by_label("SQL", exact=True).fill(
        "SELECT page, count(*) AS visits, round(avg(amount), 1) AS mean_amount, sum(amount) AS total\n"
        "FROM clicks\nGROUP BY ALL\nORDER BY visits DESC, page"
    )
    page.get_by_role("button", name="Run").click()
    expect(page.locator(".rows tbody tr")).to_have_count(7)


def test_nothing_moves_by_itself(open_page: Open, url: str, world: World) -> None:
    """While ten statuses, failed records and lines arrive nothing on the page shifts."""
    world.say("a line")
    page = open_page(url)
    page.evaluate(SHIFTS)
    for view in VIEWS:
        page.goto(f"{url}/#/{view}")
        ready(page, view)
        page.evaluate("seen.shifts = []; seen.changes = 0")
        made = world.made
        for each in range(3):
            world.fail(pipeline="orders")
            world.say(f"line {each} of something that is printed")
            page.wait_for_timeout(100)
        while world.made < made + 10:
            page.wait_for_timeout(100)
        assert page.evaluate("seen.shifts") == [], view
        assert view == "sql" or page.evaluate("seen.changes") > 0, f"{view} has not changed"


def test_fits_a_telephone(open_page: Open, url: str, world: World) -> None:
    """At 360 pixels no view is wider than the screen; what is, scrolls inside of its box."""
    world.say("a line that is long: " + "x" * 500)
    world.fail(value=b"x" * 500)
    page = open_page(url, width=360, height=740)
    for view in VIEWS:
        page.goto(f"{url}/#/{view}")
        ready(page, view)
        if view == "sql":
            ask(page)
        if view == "failures":
            page.locator(".failures button").first.click()
        assert page.evaluate("document.scrollingElement.scrollWidth") <= 360, view


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_can_be_read(open_page: Open, url: str, world: World, scheme: str) -> None:
    """Text has the contrast of WCAG AA (4.5 to 1) in both themes, and charts have the theme's colours."""
    world.say("a line")
    world.say("missing output", "notice")
    page = open_page(url, scheme=scheme)
    for view in VIEWS:
        page.goto(f"{url}/#/{view}")
        ready(page, view)
        if view == "sql":
            ask(page)
        looked, poor = page.evaluate(CONTRASTS)
        assert looked > 20, view
        assert poor == [], view
    page.goto(f"{url}/#/")
    ready(page, "")
    ground = "getComputedStyle(document.body).backgroundColor"
    line = "getComputedStyle(document.querySelector('.scatterlayer path.js-line')).stroke"
    before, stroke = page.evaluate(ground), page.evaluate(line)
    assert (sum(map(int, re.findall(r"\d+", before))) < 200) == (scheme == "dark")
    page.get_by_role("button", name="Theme").click()  # light
    if scheme == "light":
        page.get_by_role("button", name="Theme").click()  # dark
    assert page.evaluate(ground) != before
    page.wait_for_function(f"{line} !== {json.dumps(stroke)}")


def test_pictures(open_page: Open, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures for the README: HEADRACE_SCREENSHOTS names their folder, else they are only looked at."""
    monkeypatch.setattr(web_world, "_data", shop)
    folder = Path(os.environ.get("HEADRACE_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    url = serve(World(shards=12, pipelines=3, well=True))
    page = open_page(url)
    ready(page, "")
    take(page, folder / "page-light.png")
    page.goto(f"{url}/#/sql")
    ready(page, "sql")
    page.get_by_label("SQL", exact=True).fill(
        "SELECT time_bucket(INTERVAL 1 MINUTE, placed_at) AS minute, count(*) AS orders, sum(price) AS revenue\n"
        "FROM orders\nGROUP BY ALL\nORDER BY minute"
    )
    page.get_by_role("button", name="Run").click()
    expect(page.locator(".rows tbody tr")).to_have_count(60)
    page.get_by_role("button", name="Chart").click()
    expect(page.locator(".plot.tall path.js-line")).to_be_visible()
    take(page, folder / "page-sql.png")
    page = open_page(serve(World(shards=12, pipelines=2)), "pipeline/orders", scheme="dark")
    ready(page, "pipeline/orders")
    expect(page.locator("#health")).to_have_attribute("data-state", "bad")
    take(page, folder / "page-dark.png")
    page = open_page(url, width=360, height=740)
    ready(page, "")
    take(page, folder / "page-narrow.png")


def shop() -> duckdb.DuckDBPyConnection:
    """An hour of a shop's orders."""
    connection = duckdb.connect(config={"threads": 1})
    connection.execute(
        "CREATE TABLE orders AS SELECT TIMESTAMP '2026-01-01 09:00:00' + INTERVAL (second) SECOND AS placed_at,"
        " (5 + number * 7 % 90 + second % 13)::DECIMAL(9, 2) AS price FROM range(3600) AS s(second),"
        " range((3 + 2 * sin(second / 500) + sin(second / 37))::BIGINT) AS n(number)"
    )
    return connection


def take(page: Page, path: Path) -> None:
    """A picture that shows something, and is small enough for a README."""
    page.evaluate("document.activeElement?.blur()")
    data = page.screenshot(path=path)
    assert 15_000 < len(data) < PICTURE_BYTES_MAX, f"{path.name} has {len(data):,} bytes"
    width, height, pixels = pixels_of(data)
    assert (width, height) == tuple(page.viewport_size.values())  # type: ignore[union-attr]
    shades = {pixels[at : at + 3] for at in range(0, len(pixels), 3 * 37)}
    assert len(shades) > 20, f"{path.name} shows next to nothing"


def pixels_of(data: bytes) -> tuple[int, int, bytes]:
    """Width, height and raw (filtered) bytes of a PNG: enough to see whether it is one colour."""
    width, height = struct.unpack(">II", data[16:24])
    at, packed = 8, b""
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        if data[at + 4 : at + 8] == b"IDAT":
            packed += data[at + 8 : at + 8 + length]
        at += 12 + length
    return width, height, zlib.decompress(packed)
