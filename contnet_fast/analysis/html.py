"""A report as one HTML page that opens from disk: texts, tables and figures, all of it inside the file."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from ..files import write_text

STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #5b6169; --line: #d8dbdf; --paper: #fff; --band: #f3f4f6; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e3e5e8; --soft: #a0a6ae; --line: #3a3f46; --paper: #17191c; --band: #202429; }
  img { filter: invert(0.91) hue-rotate(180deg); }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 56rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.7rem; line-height: 1.25; }
h2 { font-size: 1.25rem; margin: 2.8rem 0 .6rem; padding-top: .8rem; border-top: 1px solid var(--line); }
nav ul { padding-left: 1.1rem; }
a { color: inherit; }
figure { margin: 1.2rem 0; }
img { max-width: 100%; height: auto; border-radius: 4px; }
figcaption, caption { color: var(--soft); font-size: .9rem; text-align: left; }
caption { padding-bottom: .3rem; }
.wide { overflow-x: auto; margin: 1.2rem 0; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
td.number, th.number { text-align: right; white-space: nowrap; }
thead th { background: var(--band); }
dl { background: var(--band); border-radius: 4px; padding: .8rem 1rem; }
dt { font-weight: 600; font-size: .9rem; }
dd { margin: 0 0 .6rem; }
dd:last-child { margin-bottom: 0; }
"""


class Page:
    """A page that is filled from the top to the bottom and then written.

    Texts are plain: ``<`` and ``&`` are shown as they are.

    Args:
        title: the heading of the page, and the title of its window.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._parts: list[str] = []
        self._sections: list[str] = []

    def section(self, heading: str) -> None:
        """Begin a section, which the list at the top of the page leads to."""
        self._sections.append(heading)
        self._parts.append(f'<h2 id="section-{len(self._sections)}">{html.escape(heading)}</h2>')

    def text(self, text: str) -> None:
        """Add a paragraph."""
        self._parts.append(f"<p>{html.escape(text)}</p>")

    def listing(self, items: Sequence[str]) -> None:
        """Add a list with a bullet for each item."""
        self._parts.append("<ul>" + "".join(f"<li>{html.escape(item)}</li>" for item in items) + "</ul>")

    def notes(self, notes: Mapping[str, str]) -> None:
        """Add a box of terms with a sentence or more for each, such as what a figure shows and what it does not."""
        terms = (f"<dt>{html.escape(term)}</dt><dd>{html.escape(note)}</dd>" for term, note in notes.items())
        self._parts.append("<dl>" + "".join(terms) + "</dl>")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]], *, caption: str = "") -> None:
        """Add a table; a column of numbers stands to the right.

        Args:
            columns: the headings.
            rows: a value for each column; floats are shown with four significant digits.
            caption: a line above it.

        Raises:
            ValueError: a row has not as many values as there are columns.
        """
        for row in rows:
            if len(row) != len(columns):
                raise ValueError(
                    f"rows: got a row of {len(row)} values, accepted: {len(columns)}, as there are columns"
                )
        right = [bool(rows) and all(isinstance(row[i], (int, float)) for row in rows) for i in range(len(columns))]

        def line(tag: str, values: Sequence[object]) -> str:
            kinds = [' class="number"' if number else "" for number in right]
            cells = zip(kinds, values, strict=True)
            return "<tr>" + "".join(f"<{tag}{kind}>{html.escape(_shown(v))}</{tag}>" for kind, v in cells) + "</tr>"

        head = f"<caption>{html.escape(caption)}</caption>" if caption else ""
        body = "".join(line("td", row) for row in rows)
        self._parts.append(
            f'<div class="wide"><table>{head}<thead>{line("th", columns)}</thead><tbody>{body}</tbody></table></div>'
        )

    def figure(self, figure: Figure, *, alt: str, caption: str = "") -> None:
        """Add a picture, as a PNG inside the page.

        Args:
            figure: it is drawn now, on white.
            alt: what it shows, for who cannot see it.
            caption: a line below it.
        """
        data = base64.b64encode(png(figure)).decode("ascii")
        below = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
        self._parts.append(
            f'<figure><img src="data:image/png;base64,{data}" alt="{html.escape(alt, quote=True)}">{below}</figure>'
        )

    def write(self, path: Path) -> None:
        """Write the page atomically.

        Raises:
            OSError: the folder cannot be written.
        """
        write_text(path, str(self))

    def __str__(self) -> str:
        title = html.escape(self._title)
        links = (f'<li><a href="#section-{i}">{html.escape(s)}</a></li>' for i, s in enumerate(self._sections, 1))
        contents = f"<nav><ul>{''.join(links)}</ul></nav>" if len(self._sections) > 1 else ""
        first = next((i for i, part in enumerate(self._parts) if part.startswith("<h2")), len(self._parts))
        body = "\n".join([*self._parts[:first], contents, *self._parts[first:]])
        return (
            f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{STYLE}</style>\n</head>\n'
            f"<body>\n<h1>{title}</h1>\n{body}\n</body>\n</html>\n"
        )


def png(figure: Figure) -> bytes:
    """Return a figure as a PNG file; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)
