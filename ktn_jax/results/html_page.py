"""A self-contained HTML page of text, tables and pictures; all text is escaped by the template."""

import base64
import dataclasses
import io
from collections.abc import Sequence

import jinja2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

_TEMPLATE = jinja2.Environment(
    autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
).from_string("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{{ title }}</title>
<style>
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 76em; padding: 0 1em; }
table { border-collapse: collapse; margin: 0 0 1.2em; }
th, td { padding: .2em .7em; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; height: auto; }
pre { background: #f4f4f6; padding: .7em; white-space: pre; overflow-x: auto; }
.note { background: #fff6dc; padding: .3em .8em; margin: .3em 0; }
</style>
</head>
<body>
{% for block in blocks %}
{% if block.kind == "heading" %}
<h{{ block.level }}>{{ block.text }}</h{{ block.level }}>
{% elif block.kind == "paragraph" %}
<p{% if block.is_note %} class="note"{% endif %}>{{ block.text }}</p>
{% elif block.kind == "command" %}
<pre>{{ block.text }}</pre>
{% elif block.kind == "table" %}
<table>
{% if block.header %}
<tr>{% for cell in block.header %}<th>{{ cell }}</th>{% endfor %}</tr>
{% endif %}
{% for row in block.rows %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</table>
{% elif block.kind == "picture" %}
<p><img alt="{{ block.text }}" src="data:image/png;base64,{{ block.base64 }}"></p>
{% endif %}
{% endfor %}
</body>
</html>
""")


@dataclasses.dataclass(frozen=True)
class Heading:
    """A heading of level 1 (the page's) to 6."""

    text: str
    level: int = 2
    kind = "heading"


@dataclasses.dataclass(frozen=True)
class Paragraph:
    """A paragraph; a note is set off from the others."""

    text: str
    is_note: bool = False
    kind = "paragraph"


@dataclasses.dataclass(frozen=True)
class Command:
    """A command to type."""

    text: str
    kind = "command"


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of text under a header, or under none where it is empty."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    kind = "table"


@dataclasses.dataclass(frozen=True)
class PictureBlock:
    """A PNG file's bytes, held by the page itself, and what they show."""

    png: bytes
    text: str
    kind = "picture"

    @property
    def base64(self) -> str:
        """The bytes as text."""
        return base64.b64encode(self.png).decode("ascii")


Block = Heading | Paragraph | Command | Table | PictureBlock


def render_page(title: str, blocks: Sequence[Block]) -> str:
    """Renders the page.

    Args:
        title: of the page, as browsers show it.
        blocks: the content, from top to bottom.

    Returns:
        HTML that needs no other file.
    """
    return _TEMPLATE.render(title=title, blocks=blocks) + "\n"


def number(value: float | None, digits: int) -> str:
    """Formats a cell; a dash where there is no value."""
    return "–" if value is None else f"{value:.{digits}f}"


def figure_picture(figure: Figure, text: str, dpi: int) -> PictureBlock:
    """Draws a figure of Matplotlib."""
    FigureCanvasAgg(figure)  # no pyplot: it would keep figures and need a display's backend
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=dpi)
    return PictureBlock(stream.getvalue(), text)


def image_picture(image: np.ndarray, text: str) -> PictureBlock:
    """Encodes an image, uint8 RGB [H, W, 3]."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format="png", optimize=True)
    return PictureBlock(stream.getvalue(), text)
