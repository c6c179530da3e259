"""report.html: complete, self-contained, and safe for all texts."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Optional

import cv2
import numpy as np
import pytest

from embedding_learning.errors import UsageError
from embedding_learning.plots import html_report
from embedding_learning.plots.html_report import ReportFigure

SVG = '<svg xmlns="http://www.w3.org/2000/svg"><circle r="5"/></svg>'
NASTY = "</td><script>alert(1)</script>\"'&amp;{title} \ud800 %s 日本"


class Page(HTMLParser):
    """The elements of a page, with their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, Optional[str]]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, Optional[str]]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def images(self) -> list[str]:
        return [str(attrs["src"]) for tag, attrs in self.elements if tag == "img"]


def written(folder: Path, **given: Any) -> str:
    """A report with what is given and else little."""
    values: dict[str, Any] = {"title": "A run", "command": "python3 train.py", "flags": {}}
    values.update({"versions": {}, "metrics": [], "figures": [], **given})
    html_report.write_report(str(folder / "report.html"), **values)
    return (folder / "report.html").read_text(encoding="utf-8")


def photograph(path: Path, width: int, height: int) -> str:
    """A file of noise, which no format makes small."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    cv2.imwrite(str(path), pixels)
    return str(path)


def test_everything_given_stands_on_the_page(tmp_path: Path) -> None:
    (tmp_path / "a.svg").write_text(SVG)
    page = Page(
        written(
            tmp_path,
            title="Birds",
            command="python3 train.py --lr 1",
            flags={"--lr": 0.0001, "--gpus": ""},
            versions={"mxnet": "1.9.1"},
            metrics=[{"epoch": 3, "recall@1": 0.5}],
            figures=[
                ReportFigure(
                    "Curves", str(tmp_path / "a.svg"), "Over the epochs.", [["class"], ["a wren"]]
                )
            ],
            notes=["Written today."],
            notes_on_metrics=["2 of 9 images have no match."],
        )
    )
    for text in ("Birds", "python3 train.py --lr 1", "--lr", "0.0001", "--gpus", "mxnet", "1.9.1",
                 "epoch", "3", "recall@1", "0.5000", "Curves", "Over the epochs.",
                 "class", "a wren", "Written today.", "2 of 9 images have no match."):  # fmt: skip
        assert text in page.text
    assert page.open == []
    assert page.images() == ["data:image/svg+xml;base64," + base64.b64encode(SVG.encode()).decode()]


def test_no_text_becomes_markup(tmp_path: Path) -> None:
    plain = Page(written(tmp_path, title="a", flags={"a": "a"}, metrics=[{"a": "a"}]))
    (tmp_path / "a.svg").write_text(SVG)
    page = Page(
        written(
            tmp_path,
            title=NASTY,
            command=NASTY,
            flags={NASTY: NASTY},
            versions={NASTY: NASTY},
            metrics=[{NASTY: NASTY}],
            figures=[ReportFigure(NASTY, str(tmp_path / "a.svg"), NASTY, [[NASTY], [NASTY]])],
            notes=[NASTY],
        )
    )
    assert page.open == []
    assert page.text.count(NASTY.replace("\ud800", "?")) == 14
    tags = {tag for tag, _ in page.elements}
    assert tags <= {tag for tag, _ in plain.elements} | {"figure", "figcaption", "img", "p"}
    images = [attrs for tag, attrs in page.elements if tag == "img"]
    assert set(images[0]) == {"alt", "src"}


def test_the_page_asks_for_nothing_and_runs_nothing(tmp_path: Path) -> None:
    path = photograph(tmp_path / "a.png", 8, 8)
    html = written(tmp_path, figures=[ReportFigure("a", path)])
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in html
    assert not re.search(r"https?:|<script|<link|<iframe|@import|url\(|\son\w+=", html)
    assert "prefers-color-scheme: dark" in html


def test_the_largest_value_of_each_metric_is_bold(tmp_path: Path) -> None:
    rows = [
        {"epoch": 0, "recall@1": 0.5, "nmi": 0.75},
        {"epoch": 1, "recall@1": 0.625, "nmi": 0.25},
        {"epoch": 2, "recall@1": None},
    ]
    html = written(tmp_path, metrics=rows)
    assert re.findall("<b>(.*?)</b>", html) == ["0.7500", "0.6250"]
    assert html.count("<td>\N{EN DASH}</td>") == 2
    assert "<b>" not in written(tmp_path, metrics=rows[:1])
    assert "Nothing was evaluated" in written(tmp_path)


def test_a_value_that_is_no_number_hides_none(tmp_path: Path) -> None:
    rows = [{"recall@1": float("nan")}, {"recall@1": 0.5}, {"recall@1": 0.25}]
    assert re.findall("<b>(.*?)</b>", written(tmp_path, metrics=rows)) == ["0.5000"]


def test_small_pictures_are_embedded_to_the_bit(tmp_path: Path) -> None:
    path = photograph(tmp_path / "a.png", 40, 30)
    (image,) = Page(written(tmp_path, figures=[ReportFigure("a", path)])).images()
    kind, content = image.split(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(content) == Path(path).read_bytes()


def test_large_pictures_are_embedded_small_enough(tmp_path: Path) -> None:
    path = photograph(tmp_path / "a.png", 3000, 1500)
    html = written(tmp_path, figures=[ReportFigure("a", path)])
    kind, content = Page(html).images()[0].split(",")
    assert kind == "data:image/jpeg;base64"
    assert len(html) < 4.1e6
    height, width, _ = cv2.imdecode(
        np.frombuffer(base64.b64decode(content), np.uint8), cv2.IMREAD_COLOR
    ).shape
    assert width < 3000
    assert width / height == pytest.approx(2, rel=0.01)


def test_a_picture_that_cannot_be_read_is_reported_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "missing.png"
    with pytest.raises(UsageError, match=r"missing\.png: cannot be read") as caught:
        written(tmp_path, figures=[ReportFigure("a", str(path))])
    assert "\n" not in str(caught.value)
    path.write_bytes(b"no picture" * 200_000)
    with pytest.raises(UsageError, match=r"missing\.png: is damaged"):
        written(tmp_path, figures=[ReportFigure("a", str(path))])


def test_a_path_that_cannot_be_written_is_reported_in_one_line(tmp_path: Path) -> None:
    nothing: list[Any] = []
    (tmp_path / "folder.html").mkdir()
    for name in ("report.txt", "no/report.html", "folder.html"):
        with pytest.raises(UsageError, match=name) as caught:
            html_report.write_report(str(tmp_path / name), "", "", {}, {}, nothing, nothing)
        assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.html"]


def test_a_former_report_stays_until_the_new_one_is_complete(tmp_path: Path) -> None:
    before = written(tmp_path)
    with pytest.raises(UsageError):
        written(tmp_path, title="Other", figures=[ReportFigure("a", "missing.png")])
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == before
