"""The page in a real browser: no console message, no sideways scrolling on a phone."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxmlcl.report import write_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)

pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no browser: install Debian's chromium, or google-chrome"
)

OPTIONS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--v=0",
    "--dump-dom",
]

Visit = Callable[..., tuple[str, list[str]]]


@pytest.fixture
def visit(tmp_path: Path) -> Visit:
    """Opens a file; gives the document after loading and the lines of the console."""

    def open_file(file: Path, *, dark: bool = False) -> tuple[str, list[str]]:
        command = [
            str(BROWSER),
            *OPTIONS,
            f"--user-data-dir={tmp_path / 'profile'}",
            "--allow-file-access-from-files",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            file.as_uri(),
        ]
        # Nothing of the user's is read: profile, cache and settings are new.
        environment = {**os.environ, "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
        done = subprocess.run(command, capture_output=True, timeout=60, env=environment)
        assert done.returncode == 0, done.stderr.decode(errors="replace")[-2000:]
        messages = re.findall(r"CONSOLE[:(]\d+\)?\] (.*)", done.stderr.decode(errors="replace"))
        return done.stdout.decode(), messages

    return open_file


@pytest.fixture
def page(run_directory: Path, image_samples: dict[str, Any], evaluate: Callable[..., None]) -> Path:
    """A page with names that are long, and others that would be markup."""
    rng = np.random.default_rng(4)
    labels = (rng.random((30, 5)) < 0.5).astype(np.uint8)
    names = ["<script>undefined_name()</script>", "w" * 120, "a b " * 40, "$", "標" * 50]
    evaluate(run_directory, {"probe": rng.random((30, 5)), "bce": 1 - labels}, labels, names)
    return write_report(run_directory, samples=image_samples)


def with_script(page: Path, script: str) -> Path:
    """A copy of the page that runs a script, which the page's own policy would refuse."""
    text = re.sub(r"<meta http-equiv=.Content-Security-Policy.[^>]*>", "", page.read_text())
    copy = page.with_name("copy.html")
    copy.write_text(text.replace("</body>", f"<script>{script}</script></body>"))
    return copy


def test_no_console_message(page: Path, visit: Visit) -> None:
    document, messages = visit(page)
    assert messages == []
    assert "<title>Digits, MulSupCon against BCE · jaxmlcl report</title>" in document
    assert document.count("<svg") == page.read_text().count("<svg") == 14


def test_a_script_error_would_be_seen(page: Path, visit: Visit) -> None:
    _, messages = visit(with_script(page, "undefined_name()"))
    assert len(messages) == 1
    assert "undefined_name is not defined" in messages[0]


def test_the_page_refuses_scripts_and_the_network(page: Path, visit: Visit) -> None:
    text = page.read_text()
    copy = page.with_name("copy.html")
    foreign = '<script>document.title = "changed"</script><img src="http://127.0.0.1:9/a.png">'
    copy.write_text(text.replace("</main>", foreign + "</main>"))
    document, messages = visit(copy)
    assert "<title>changed</title>" not in document
    assert len(messages) == 2
    assert all("Content Security Policy" in message for message in messages)


# Windows narrower than 500 pixels are refused, frames are not. The frame's page is looked into
# from outside, so that its own policy stays as it is.
FRAME = """<!DOCTYPE html><title>frame</title>
<iframe src="{page}" style="width: {width}px; height: 900px; border: 0"></iframe>
<script>
addEventListener("load", () => {{
  const page = document.querySelector("iframe").contentDocument, root = page.documentElement;
  page.querySelectorAll("details").forEach(part => part.open = true);
  const style = getComputedStyle(page.body);
  const chart = getComputedStyle(page.querySelector("svg text")).fill;
  const sizes = [root.clientWidth, root.scrollWidth];
  document.title = [...sizes, style.color, style.backgroundColor, chart].join("|");
}});
</script>"""


def measure(page: Path, visit: Visit, *, width: int, dark: bool = False) -> list[str]:
    """Width of the window and of the content; colours of text, paper and a chart's text."""
    frame = page.with_name("frame.html")
    frame.write_text(FRAME.format(page=page.as_uri(), width=width))
    document, messages = visit(frame, dark=dark)
    assert messages == []
    found = re.search("<title>(.*?)</title>", document)
    assert found is not None
    return found[1].split("|")


def test_no_sideways_scrolling_on_a_phone(page: Path, visit: Visit) -> None:
    window, content, *_ = measure(page, visit, width=375)
    assert content == window
    assert 340 < int(window) <= 375  # less a scroll bar, where there is one
    wide = page.read_text().replace("</main>", '<div style="width: 600px">x</div></main>')
    page.write_text(wide)
    _, content, *_ = measure(page, visit, width=375)
    assert int(content) > 375


def luminance(colour: str) -> float:
    """Relative luminance of "rgb(r, g, b)", as WCAG defines it."""
    channels = [int(number) / 255 for number in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("dark", [False, True])
def test_light_and_dark(page: Path, visit: Visit, dark: bool) -> None:
    _, _, ink, paper, chart = measure(page, visit, width=1280, dark=dark)
    assert (luminance(paper) < 0.05) == dark
    for text, least in ((ink, 7.0), (chart, 4.5)):
        low, high = sorted((luminance(text), luminance(paper)))
        assert (high + 0.05) / (low + 0.05) >= least
