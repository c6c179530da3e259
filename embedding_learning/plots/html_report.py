"""The HTML report of a run: one file that needs no other. Its template is report.html.j2."""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import jinja2

from embedding_learning.errors import UsageError
from embedding_learning.runtime.atomic_files import check_output_path, write_text

# A PNG file of more bytes is stored as JPEG: it shows photographs, not curves.
_LARGE = 1_000_000
_QUALITY = 85
# Largest JPEG in the report, in bytes. Base64 adds a third.
_MAX_BYTES = 3_000_000


class ReportFigure(NamedTuple):
    """A PNG or SVG file, the heading above it, and the sentence and the table below it.

    The first row of the table is its head.
    """

    heading: str
    path: str
    caption: str = ""
    table: Sequence[Sequence[str]] = ()


def write_report(
    path: str,
    title: str,
    command: str,
    flags: Mapping[str, Any],
    versions: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    figures: Sequence[ReportFigure],
    notes: Sequence[str] = (),
    notes_on_metrics: Sequence[str] = (),
) -> None:
    """Writes the report of a run: metrics, figures, command, flags and versions.

    The page loads no other file and runs no script. Texts may contain anything, since all are
    escaped. Figures with photographs are stored as JPEG, and smaller if they would take more than
    3 MB; an SVG is stored as it is.

    Parameters
    ----------
    path : str
        The file; ends in .html. It is replaced when the new content is complete.
    title : str
    command : str
        The command line of the run.
    flags, versions : mapping
        Values by name.
    metrics : sequence of mapping
        The rows of the table of metrics, such as one for each epoch. Its columns are all names, in
        the order of their first occurrence. Of several rows the largest value of each metric is
        bold.
    figures : sequence of ReportFigure
    notes : sequence of str
        Paragraphs below the title.
    notes_on_metrics : sequence of str
        Paragraphs below the table of metrics.

    Raises
    ------
    UsageError
        If the file cannot be written, or a figure cannot be read.
    """
    check_report_path(path)
    metric_names = list(dict.fromkeys(name for row in metrics for name in row))
    page = _template().render(
        title=title,
        notes=notes,
        metric_names=metric_names,
        metric_rows=_metric_cells(metrics, metric_names),
        notes_on_metrics=notes_on_metrics,
        figures=figures,
        command=command,
        flags=flags,
        versions=versions,
    )
    write_text(path, page)


def check_report_path(path: str) -> None:
    """Raises UsageError if no report can be written to this path. Writes nothing."""
    check_output_path(path, (".html", ".htm"))


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(os.path.dirname(__file__)),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["data_uri"] = _data_uri
    return environment.get_template("report.html.j2")


def _metric_cells(
    rows: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> list[list[tuple[str, bool]]]:
    """Returns for each row and name the text of the cell, and whether it is the best value."""
    best = {name: _largest(rows, name) for name in names} if len(rows) > 1 else {}
    return [
        [
            (_cell_text(row.get(name)), best.get(name) is not None and row.get(name) == best[name])
            for name in names
        ]
        for row in rows
    ]


def _largest(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """Returns the largest finite float. Whole numbers are counts, such as epochs."""
    values = [row[name] for row in rows if isinstance(row.get(name), float)]
    return max((value for value in values if math.isfinite(value)), default=None)


def _cell_text(value: Any) -> str:
    if value is None:
        return "\N{EN DASH}"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _data_uri(path: str) -> str:
    """Returns a data: address that contains the figure."""
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from error
    media_type = "image/svg+xml" if path.lower().endswith(".svg") else "image/png"
    if media_type == "image/png" and len(content) > _LARGE:
        media_type, content = "image/jpeg", _as_jpeg(path)
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def _as_jpeg(path: str) -> bytes:
    """Returns the figure as JPEG, shrunk until it has at most `_MAX_BYTES`."""
    image = cv2.imread(path, cv2.IMREAD_COLOR)
    if image is None:
        raise UsageError(f"{path}: is damaged or not a PNG file; draw it again")
    while True:
        _, content = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
        if len(content) <= _MAX_BYTES:
            return content.tobytes()
        image = cv2.resize(image, None, fx=0.85, fy=0.85, interpolation=cv2.INTER_AREA)
