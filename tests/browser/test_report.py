"""The report in a real browser: it fits, asks for nothing, and can be read by everyone."""

import shutil
from collections.abc import Iterator
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from bridge_pipeline.steps.report import Report, write_report
from tests.integration.flow import NAME, connect
from tests.integration.planted import DAY, failed, passed, plant, plant_history, plant_hostile, rejected

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="neither chromium nor google-chrome is installed")

WIDTHS = (360, 768, 1280)
# WCAG 2: 4.5 to 1 for text, 3 to 1 for large text.
CONTRAST = """() => {
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const back = element => {
    for (let e = element; e; e = e.parentElement) {
      const colour = parse(getComputedStyle(e).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const bad = [];
  for (const element of document.body.querySelectorAll("*")) {
    const own = [...element.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || !element.checkVisibility()) continue;
    const style = getComputedStyle(element), [a, b] = [light(parse(style.color)), light(back(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    if (ratio < (large ? 3 : 4.5)) bad.push([element.textContent.slice(0, 40), ratio]);
  }
  return bad;
}"""
HEADINGS = """() => [...document.querySelectorAll("h1,h2,h3,h4,h5,h6")].map(h => Number(h.tagName[1]))"""
UNNAMED = """() => {
  const names = [...document.querySelectorAll("[aria-labelledby]")]
    .filter(e => !document.getElementById(e.getAttribute("aria-labelledby")))
    .map(e => e.outerHTML.slice(0, 80));
  const ids = [...document.querySelectorAll("[id]")].map(e => e.id);
  const anchors = [...document.querySelectorAll("a[href^='#']")].filter(a => !document.querySelector(a.hash));
  const cells = [...document.querySelectorAll("th:not([scope])")];
  const tables = [...document.querySelectorAll("table")].filter(t => !t.caption);
  return [names, ids.filter((id, i) => ids.indexOf(id) !== i), anchors.length, cells.length, tables.length];
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        yield launched
        launched.close()


@pytest.fixture
def reports(workspace: Any) -> dict[str, Report]:
    """Reports of a spoilt, a hostile, a good and a missing day."""
    connect(workspace, "https://desk.example.com")
    days = {"good": DAY - timedelta(days=9), "spoilt": DAY - timedelta(days=3)}
    for entity in ("accounts", "users", "tickets"):
        batch = plant(workspace, entity, [passed("name", "Everything has a name.", 400)], day=days["good"])
        plant_history(workspace, batch, [3, 9, None, 14, 8, 21])
    plant(workspace, "accounts", [passed("name", "Everything has a name.", 400)], day=days["spoilt"])
    plant(workspace, "users", None, day=days["spoilt"])
    checks = [
        failed("quarantined_share", "block", "Not more records are rejected than may be.", 31, 431),
        failed("priority_known", "warn", "The priority is known.", 9, 400, priority="Whenever"),
    ]
    bad = [rejected("nul_character", b'{"id":7,"s":"\\u0000"}', record_id="7", pointer="/s")]
    plant(workspace, "tickets", checks, bad, day=days["spoilt"])
    plant_hostile(workspace)
    days |= {"hostile": DAY, "missing": DAY + timedelta(days=30)}
    return {name: write_report(workspace, NAME, each) for name, each in days.items()}


def opened(browser: Any, path: Path, width: int, asked: list[str], **options: Any) -> Any:
    """A page of the report; what it asks for is kept, and what is not itself is refused."""
    page = browser.new_page(viewport={"width": width, "height": 900}, **options)
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: asked.append(f"error {error}"))
    page.on("console", lambda message: asked.append(f"console {message.text}"))
    page.route(
        "**/*", lambda route: route.continue_() if route.request.url == path.as_uri() else route.abort()
    )
    page.goto(path.as_uri())
    return page


@pytest.mark.slow
def test_every_report_fits_every_width_asks_for_nothing_and_is_readable(
    browser: Any, reports: dict[str, Report]
) -> None:
    for name, report in reports.items():
        asked: list[str] = []
        page = opened(browser, report.html, WIDTHS[0], asked, color_scheme="light")
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= width, (name, width)
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            assert page.evaluate(CONTRAST) == [], (name, scheme)
        page.emulate_media(color_scheme="dark", media="print")
        assert page.evaluate(CONTRAST) == [], (name, "print")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        headings = page.evaluate(HEADINGS)
        assert headings[0] == 1
        assert headings.count(1) == 1
        assert all(after <= before + 1 for before, after in pairwise(headings)), name
        assert page.evaluate(UNNAMED) == [[], [], 0, 0, 0], name
        assert asked == [report.html.as_uri()], name
        page.close()


def test_a_screen_reader_and_a_keyboard_get_everywhere(browser: Any, reports: dict[str, Report]) -> None:
    page = opened(browser, reports["spoilt"].html, 768, [])
    assert page.locator("html").get_attribute("lang") == "en"
    for role in ("banner", "main", "contentinfo"):
        assert page.get_by_role(role).count() == 1, role
    assert page.get_by_role("navigation", name="Contents").count() == 1
    assert page.get_by_role("region", name="Do not rely on this data yet").count() == 1
    assert page.get_by_role("table", name="What the source sent").first.is_visible()
    trend = page.get_by_role("img", name="Tickets per day, last 30 days")
    assert trend.count() == 1
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the report"
    assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.tagName") == "MAIN"
    page.keyboard.press("Tab")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid", "where the focus is, is seen"
    link = page.get_by_role("link", name="4000").first
    assert link.get_attribute("href") == "https://desk.example.com/support/tickets/4000"
    page.close()


@pytest.mark.slow
def test_a_verdict_is_told_without_colour_and_on_paper(browser: Any, reports: dict[str, Report]) -> None:
    for name, word in (("good", "Complete and good"), ("spoilt", "Do not rely"), ("missing", "Do not rely")):
        page = opened(browser, reports[name].html, 1280, [])
        page.emulate_media(media="print")
        assert word in page.get_by_role("heading", level=2).first.inner_text()
        assert page.pdf(format="A4", print_background=False).startswith(b"%PDF")
        page.close()


def test_nothing_hostile_runs_or_steers_the_page(browser: Any, reports: dict[str, Report]) -> None:
    page = opened(browser, reports["hostile"].html, 360, [])
    assert page.locator("script, img, iframe, form, object, link").count() == 0
    text = page.locator("body").inner_text()
    assert "<script>alert" in text, "shown as the text that it is"
    assert "49" not in page.locator("h4", has_text="{{ 7 * 7 }}").first.inner_text().split("must not be")[0]
    assert "\u202e" not in text
    refused = page.evaluate(
        """() => { const i = document.createElement("img"); i.src = "http://evil.example/x.png";
        const s = document.createElement("script"); s.textContent = "window.ran = 1";
        document.body.append(i, s); return window.ran === undefined; }"""
    )
    assert refused, "the page's own policy forbids scripts"
    page.close()
