"""The HTML page: everything inside, text as text, and the same tables in Markdown."""

import base64
import re

import numpy as np
import pytest
from PIL import Image

from tl_jax.report import html

pytestmark = pytest.mark.fast


def test_everything_stands_in_one_file(tmp_path):
    picture = tmp_path / "a.png"
    Image.fromarray(np.full((3, 5, 3), 90, np.uint8)).save(picture)
    table = html.Table(["name", "value"], [["<b>x</b>", "1 ± 2"]])
    section = html.Section("One & two", ["a < b"], [table, html.Image(picture, "grey")])
    text = html.write_page(tmp_path / "page.html", "Title", [section]).read_text()
    picture.unlink()
    assert "&lt;b&gt;x&lt;/b&gt;" in text and "a &lt; b" in text and "One &amp; two" in text and "<b>" not in text
    (data,) = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    assert base64.b64decode(data)[:4] == b"\x89PNG"
    assert "http" not in text and "color-scheme: light dark" in text


def test_markdown_has_the_same_cells():
    table = html.Table(["name", "value"], [["x", "1"], ["y", "2"]])
    assert html.to_markdown(table) == "| name | value |\n| --- | --- |\n| x | 1 |\n| y | 2 |\n"
