"""A run on one page: report.html, which needs nothing but itself."""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import cv2

from embedding_learning.errors import UsageError
from embedding_learning.runtime.atomic_files import atomic_write

# Bytes of a picture's file from which it is stored as JPEG: photographs, not curves.
_LARGE = 1_000_000
_QUALITY = 85
# Bytes of a picture in the report. Base64 adds a third.
_MOST_BYTES = 3_000_000


class ReportFigure(NamedTuple):
    """A PNG or SVG file, the heading above it and the sentence below."""

    heading: str
    path: str
    caption: str = ""


def write_report(
    path: str,
    title: str,
    command: str,
    flags: Mapping[str, Any],
    versions: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    pictures: Sequence[ReportFigure],
    notes: Sequence[str] = (),
    notes_on_metrics: Sequence[str] = (),
) -> None:
    """Writes a run's page: metrics, pictures, command, flags and versions.

    The page asks for no other file and runs no script. Any text may stand in it, since all is
    escaped. Pictures of photographs are stored as JPEG, and smaller if they would take more than
    3 MB; an SVG is stored as it is.

    Parameters
    ----------
    path : str
        The file; ends in .html. Its former content stays until the new is complete.
    title : str
    command : str
        The command line of the run.
    flags, versions : mapping
        Value by name.
    metrics : sequence of mapping
        The rows of the table of metrics, such as one for each epoch; its columns are all names, in
        the order they are found in. Of several rows the largest value of each metric is bold.
    pictures : sequence of ReportFigure
    notes : sequence of str
        Paragraphs below the title.
    notes_on_metrics : sequence of str
        Paragraphs below the table of metrics.

    Raises
    ------
    UsageError
        If the file cannot be written, or a picture cannot be read.
    """
    check_report_path(path)
    parts = [
        f"<h1>{escape(title)}</h1>",
        *(f"<p>{escape(note)}</p>" for note in notes),
        "<h2>Metrics</h2>",
        _metrics_table(metrics),
        *(f"<p>{escape(note)}</p>" for note in notes_on_metrics),
        *(_figure(picture) for picture in pictures),
        "<h2>Command</h2>",
        f"<pre>{escape(command)}</pre>",
        "<h2>Flags</h2>",
        _two_columns(flags),
        "<h2>Versions</h2>",
        _two_columns(versions),
    ]
    page = _PAGE.format(title=escape(title), style=_STYLE, body="\n".join(parts))
    _write_whole(path, page.encode("utf-8", "replace"))


def check_report_path(path: str) -> None:
    """Raises UsageError if no report can have this name or place."""
    if not path.lower().endswith((".html", ".htm")):
        raise UsageError(f"{path}: a report is a web page; end the name in .html")
    folder = os.path.dirname(path) or os.curdir
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        raise UsageError(f"{path}: the folder {folder} is not there or cannot be written to")


# The policy keeps a browser from the network and from scripts, whatever the texts hold.
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --page: #ffffff; --faint: #d8dee4;
 --shade: #f3f5f7; --gray: #59636e }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --page: #14171a; --faint: #343b42;
 --shade: #1e2328; --gray: #a3adb8 } }
body { margin: 2rem; background: var(--page); color: var(--ink);
 font: 1rem/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif }
h1 { font-size: 1.8rem; line-height: 1.2; overflow-wrap: anywhere }
h2 { font-size: 1.3rem; margin: 2.5rem 0 0.6rem; overflow-wrap: anywhere }
figure { margin: 0 }
figcaption { color: var(--gray); max-width: 50rem; overflow-wrap: anywhere }
img { display: block; max-width: 100%; height: auto; background: #ffffff; border-radius: 6px }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: 0.25rem 0.9rem; border-bottom: 1px solid var(--faint); text-align: right;
 unicode-bidi: isolate }
thead th { background: var(--shade) }
.pairs th, .pairs td { text-align: left; vertical-align: top; overflow-wrap: anywhere }
.pairs th { font-weight: normal; color: var(--gray); white-space: nowrap }
pre { background: var(--shade); padding: 0.8rem 1rem; border-radius: 6px; white-space: pre-wrap;
 overflow-wrap: anywhere }
"""


def _metrics_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line for each mapping; a value that one lacks is a dash."""
    if not rows:
        return "<p>Nothing was evaluated.</p>"
    names = list(dict.fromkeys(name for row in rows for name in row))
    best = {name: _largest(rows, name) for name in names} if len(rows) > 1 else {}
    lines = [
        f"<tr>{''.join(f'<th>{escape(str(name))}</th>' for name in names)}</tr></thead><tbody>"
    ]
    for row in rows:
        cells = []
        for name in names:
            text = escape(_shown(row.get(name)))
            bold = best.get(name) is not None and row.get(name) == best[name]
            cells.append(f"<td><b>{text}</b></td>" if bold else f"<td>{text}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return '<div class="scroll"><table><thead>' + "\n".join(lines) + "</tbody></table></div>"


def _largest(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """Of the fractions only: a whole number counts something, such as epochs."""
    values = [row[name] for row in rows if isinstance(row.get(name), float)]
    return max((value for value in values if math.isfinite(value)), default=None)


def _shown(value: Any) -> str:
    if value is None:
        return "\N{EN DASH}"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _two_columns(values: Mapping[str, Any]) -> str:
    """A table of names and values; an empty value is shown as such."""
    rows = (
        f"<tr><th>{escape(str(name))}</th><td>{escape(str(value))}</td></tr>"
        for name, value in values.items()
    )
    return '<table class="pairs">\n' + "\n".join(rows) + "\n</table>"


def _figure(picture: ReportFigure) -> str:
    heading, caption = escape(picture.heading), escape(picture.caption)
    return (
        f"<h2>{heading}</h2>\n<figure>"
        f'<img alt="{heading}" src="{_data_uri(picture.path)}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _data_uri(path: str) -> str:
    """The picture within an address."""
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from error
    kind = "image/svg+xml" if path.lower().endswith(".svg") else "image/png"
    if kind == "image/png" and len(content) > _LARGE:
        kind, content = "image/jpeg", _as_jpeg(path)
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _as_jpeg(path: str) -> bytes:
    """The picture as JPEG, of at most so many bytes as a report has for it."""
    image = cv2.imread(path, cv2.IMREAD_COLOR)
    if image is None:
        raise UsageError(f"{path}: is damaged or not a PNG file; draw it again")
    while True:
        _, content = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
        if len(content) <= _MOST_BYTES:
            return content.tobytes()
        image = cv2.resize(image, None, fx=0.85, fy=0.85, interpolation=cv2.INTER_AREA)


def _write_whole(path: str, content: bytes) -> None:
    try:
        with atomic_write(path) as partial, open(partial, "wb") as file:
            file.write(content)
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be written: {error.strerror or error}; name another file"
        ) from error
