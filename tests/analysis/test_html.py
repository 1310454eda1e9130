"""A report is one file: nothing is loaded from elsewhere, and texts are shown as they are."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from contnet_fast.analysis.html import Page, png
from contnet_fast.analysis.plots import blank_figure


def drawn():
    figure = blank_figure(3.0, 2.0)
    figure.add_subplot().plot([0, 1], [1, 0])
    return figure


def whole() -> Page:
    page = Page("A & B")
    page.text("before the first section: 1 < 2")
    page.section("first")
    page.table(["name", "units"], [["a", 1234], ["b<c", 5]], caption="sizes")
    page.figure(drawn(), alt='a "falling" line', caption="below")
    page.section("second")
    page.notes({"Shows": "x > y"})
    page.listing(["one", "two & three"])
    return page


class Tags(HTMLParser):
    """Tags that are opened and closed in turn, and every text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_a_page_is_whole_and_loads_nothing(tmp_path):
    whole().write(tmp_path / "page.html")
    tags = Tags()
    tags.feed((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert tags.open == []
    assert [link for link in tags.links if not link.startswith(("#", "data:image/png;base64,"))] == []
    assert {"#section-1", "#section-2"} <= set(tags.links)
    assert {"A & B", "before the first section: 1 < 2", "b<c", "1,234", "x > y", "two & three"} <= set(tags.texts)
    assert "url(" not in str(whole())
    assert "prefers-color-scheme: dark" in str(whole())
    assert "width=device-width" in str(whole())


def test_the_same_page_has_the_same_bytes():
    assert str(whole()) == str(whole())
    assert png(drawn()).startswith(b"\x89PNG")


def test_columns_of_numbers_stand_to_the_right():
    assert re.findall(r'<td class="number">([^<]*)', str(whole())) == ["1,234", "5"]


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="rows: got a row of 1 values, accepted: 2"):
        Page("t").table(["a", "b"], [[1]])
