"""A page opened in headless Chromium, where there is one."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
# The page stands in a frame, which may be narrower than a window; its own script tells how wide it came out.
FRAME = """<!doctype html><meta charset="utf-8"><body><iframe id="f" style="width: {width}px; height: 3000px; border: 0"
srcdoc="{page}"></iframe><script>onload = () => {{ const f = document.getElementById("f"), d = f.contentDocument;
const asked = f.contentWindow.performance.getEntriesByType("resource").map(e => e.name).filter(a => !/^data:/.test(a));
document.title = JSON.stringify({{width: d.documentElement.scrollWidth, pictures: d.images.length,
broken: [...d.images].filter(i => !i.naturalWidth).length, asked}}); }};</script>"""


class Seen(NamedTuple):
    """What the browser made of a page.

    Attributes:
        width: in pixels, with all that sticks out.
        pictures: how many.
        broken: of these.
        asked: addresses that it asked for.
        console: lines of it.
    """

    width: int
    pictures: int
    broken: int
    asked: list[str]
    console: list[str]


def seen(page: Path, width: int, folder: Path) -> Seen:
    """Open ``page`` at a ``width`` in pixels; the test is skipped where there is no browser."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed")
    frame = folder / f"frame{width}.html"
    frame.write_text(FRAME.format(width=width, page=html.escape(page.read_text())))
    command = [
        program, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--hide-scrollbars",
        "--host-resolver-rules=MAP * ~NOTFOUND", "--disable-background-networking", "--disable-component-update",
        f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=4000", "--dump-dom", frame.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r"<title>({.*})</title>", done.stdout)
    assert found, done.stderr[-2000:]
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return Seen(console=console, **json.loads(html.unescape(found[1])))
