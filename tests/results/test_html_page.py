"""The page's HTML, read back by a parser."""

import base64
import html.parser
import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from ktn_jax.results import html_page


class Reader(html.parser.HTMLParser):
    """Lists opening tags and the text of cells, paragraphs, headings and commands."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] in ("h1", "h2", "h3", "p", "pre", "th", "td", "title"):
            self.texts += [data] if data.strip() else []

    def count(self, tag):
        return [name for name, _ in self.tags].count(tag)


def test_blocks_come_in_order_and_text_is_escaped():
    evil = "<script>alert('&')</script>"
    page = Reader(
        html_page.render_page(
            evil,
            [
                html_page.Heading(evil, 1),
                html_page.Heading("next"),
                html_page.Paragraph(evil, is_note=True),
                html_page.Command("ktn eval --set 'a=\"b\"' < x"),
                html_page.Table(["", "< 5 cm"], [["a&b", "1"]]),
            ],
        )
    )
    expected = [evil, evil, "next", evil, "ktn eval --set 'a=\"b\"' < x", "< 5 cm", "a&b", "1"]
    assert page.texts == expected
    assert not page.count("script")
    assert page.count("h1") == page.count("h2") == 1
    assert ("p", {"class": "note"}) in page.tags


def test_a_table_without_header_has_rows_alone():
    page = Reader(html_page.render_page("t", [html_page.Table([], [["a", "b"], ["c", "d"]])]))
    assert (page.count("tr"), page.count("th"), page.count("td")) == (2, 0, 4)


def test_pictures_are_in_the_page():
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    figure = Figure(figsize=(2, 1))
    page = Reader(
        html_page.render_page(
            "t",
            [
                html_page.image_picture(image, 'a "test" image'),
                html_page.figure_picture(figure, "a figure", dpi=50),
            ],
        )
    )
    shown = [attributes for tag, attributes in page.tags if tag == "img"]
    assert [picture["alt"] for picture in shown] == ['a "test" image', "a figure"]
    start = "data:image/png;base64,"
    assert all(picture["src"].startswith(start) for picture in shown)
    decoded = [
        Image.open(io.BytesIO(base64.b64decode(picture["src"].removeprefix(start))))
        for picture in shown
    ]
    np.testing.assert_array_equal(np.asarray(decoded[0]), image)
    assert decoded[1].size == (100, 50)


@pytest.mark.parametrize(
    ("value", "digits", "text"), [(None, 2, "–"), (1.25, 1, "1.2"), (7, 2, "7.00"), (0.0, 1, "0.0")]
)
def test_numbers_of_cells(value, digits, text):
    assert html_page.number(value, digits) == text
