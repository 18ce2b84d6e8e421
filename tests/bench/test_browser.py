"""The page in a real browser, where there is one: nothing to complain of, nothing too wide."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import escape

import pytest

from bench import report as pages
from tests.bench import reports

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium")

#: Runs in the page around it, which is as wide as a telephone's screen.
MEASURE = """
addEventListener("load", () => {
  const page = document.querySelector("iframe").contentDocument, root = page.documentElement;
  const ink = getComputedStyle(page.querySelector("svg text")).fill;
  document.title = JSON.stringify({
    window: root.clientWidth, page: root.scrollWidth, height: root.scrollHeight, ink,
    paper: getComputedStyle(page.body).backgroundColor,
    small: Math.min(...[...page.querySelectorAll("svg")].filter(s => s.checkVisibility())
      .map(s => s.getBoundingClientRect().width)),
  });
});
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    directory = tmp_path_factory.mktemp("browser")
    pages.write(reports.minimal(), directory)
    return directory / "report.html"


def visit(page, directory, *options, place=""):
    """The document after loading, and what the browser logged."""
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
         "--no-first-run", "--hide-scrollbars", f"--user-data-dir={directory / 'profile'}",
         "--enable-logging=stderr", "--host-resolver-rules=MAP * ~NOTFOUND", *options,
         "--dump-dom", page.as_uri() + place],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout, done.stderr


def test_nothing_to_complain_of(page, tmp_path):
    """The page forbids the browser to fetch anything; it would complain of every attempt."""
    document, said = visit(page, tmp_path)
    assert document.count("<svg") == page.read_text().count("<svg") > 0
    assert "CONSOLE" not in said


def test_complaints_are_heard(page, tmp_path):
    """Else the test before would pass whatever the page does."""
    loud = tmp_path / "loud.html"
    loud.write_text(page.read_text().replace("<main>", '<main><img src="http://a.test/b.png">'))
    said = visit(loud, tmp_path)[1]
    assert re.search(r"CONSOLE.*a\.test/b\.png.*Content Security Policy", said)


def measured(page, directory, *options, width, height):
    """What `MEASURE` finds on a screen of this size."""
    around = directory / "around.html"
    around.write_text(
        f'<script>{MEASURE}</script><iframe style="width:{width}px;height:{height}px;border:0" '
        f'srcdoc="{escape(page.read_text())}"></iframe>'
    )
    document, _ = visit(around, directory, *options)
    return json.loads(re.search(r"<title>(.*?)</title>", document)[1])


def test_it_is_two_screens_long_until_one_asks_for_more(tmp_path):
    pages.write(reports.full(), tmp_path)
    page = tmp_path / "report.html"
    assert measured(page, tmp_path, width=1920, height=1080)["height"] <= 2 * 1080
    closed, _ = visit(page, tmp_path)
    assert "<details open" not in closed


def test_a_link_to_a_section_opens_it(page, tmp_path):
    document, _ = visit(page, tmp_path, place="#serving")
    opened = re.findall(r'<details open="">\s*<summary>(.*?)</summary>', document)
    assert opened == ["<h2>Serving with vLLM</h2>"]


@pytest.mark.parametrize(("scheme", "ink"), [("1", "rgb(27, 31, 36)"), ("0", "rgb(230, 233, 238)")])
def test_it_fits_a_telephone_in_light_and_in_dark(page, tmp_path, scheme, ink):
    scheme = f"--blink-settings=preferredColorScheme={scheme}"
    found = measured(page, tmp_path, scheme, width=390, height=800)
    assert found["page"] == found["window"] == 390
    assert found["small"] > 330
    assert found["ink"] == ink
    assert found["paper"] != ink
