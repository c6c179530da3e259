"""What all pictures share: a page measured in pixels, text that fits, and writing the file."""

from __future__ import annotations

import io
import logging
import re
import unicodedata
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import cv2
import matplotlib
import numpy as np
from matplotlib import font_manager, style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

from embedding_learning.runtime.atomic_files import check_output_path, write_bytes

# From 3.11 on matplotlib says that a typeface has no bold; it draws the regular one instead.
logging.getLogger(font_manager.__name__).setLevel(logging.ERROR)

# From an image's row to its pixels: RGB, uint8, (height, width, 3), of any size.
Thumbnail = Callable[[int], np.ndarray]

INK, GRAY, FAINT, PAPER = "#1b1f24", "#59636e", "#d8dee4", "#ffffff"
# Of two's powers every whole number of pixels is a size that matplotlib does not round.
DPI = 128
SUFFIXES = (".png", ".svg")

# Matplotlib brings DejaVu Sans, which has no Chinese, Japanese or Korean. Of these, some of which
# come with every desktop system, it takes what is installed.
_TYPEFACES = (
    "DejaVu Sans", "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans CJK TC", "Noto Sans CJK KR",
    "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "Droid Sans Fallback", "PingFang SC",
    "Hiragino Sans", "Apple SD Gothic Neo", "Arial Unicode MS", "Microsoft YaHei", "Yu Gothic",
    "Malgun Gothic", "Noto Sans Thai", "Noto Sans Devanagari", "Noto Sans Bengali",
    "Noto Sans Tamil", "Noto Sans Telugu", "Noto Sans Ethiopic", "Unifont",
)  # fmt: skip
# The first words of the Unicode names of characters that Debian's package of CJK typefaces has.
_CJK = ("CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "HANGUL", "BOPOMOFO", "FULLWIDTH")
_MISSING, _ELLIPSIS = "\N{REPLACEMENT CHARACTER}", "\N{HORIZONTAL ELLIPSIS}"


def check_plot_path(path: str) -> None:
    """Raises UsageError if no picture can be written there; nothing is written."""
    check_output_path(path, SUFFIXES)


def save(figure: Figure, path: str) -> None:
    """Writes the figure whole or not at all, in the format of the path's suffix.

    Equal figures give equal bytes. Raises UsageError.
    """
    check_plot_path(path)
    kind = path[-3:].lower()
    repeatable = matplotlib.rc_context(
        {"svg.hashsalt": "embedding_learning", "svg.fonttype": "path"}
    )
    content = io.BytesIO()
    with repeatable:
        figure.savefig(content, format=kind, metadata={"Date": None} if kind == "svg" else {})
    write_bytes(path, content.getvalue())


def page(width: int, height: int) -> tuple[Figure, Axes]:
    """A white page of that many pixels; its axes count pixels from the upper left corner."""
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor=PAPER)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set(xlim=(0, width), ylim=(height, 0), autoscale_on=False)
    axes.axis("off")
    return figure, axes


def show(axes: Axes, canvas: np.ndarray) -> None:
    """Lays the canvas (height, width, 3) onto a page of its size, pixel on pixel."""
    height, width = canvas.shape[:2]
    axes.imshow(canvas, extent=(0, width, height, 0), interpolation="nearest", aspect="auto")
    axes.set(xlim=(0, width), ylim=(height, 0))


def blank(width: int, height: int) -> np.ndarray:
    """A white canvas, (height, width, 3)."""
    return np.full((height, width, 3), 255, np.uint8)


def paste(canvas: np.ndarray, image: np.ndarray, left: int, top: int, side: int) -> None:
    """Puts the image into a square of the canvas: as large as fits, its shape kept, centered."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    width, height = max(1, round(width * scale)), max(1, round(height * scale))
    # INTER_AREA averages over what a pixel covers; enlarging it would only repeat pixels.
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    image = cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=way)
    left, top = left + (side - width) // 2, top + (side - height) // 2
    canvas[top : top + height, left : left + width] = image


def write(
    axes: Axes,
    x: float,
    y: float,
    text: str,
    pixels: float,
    width: float = 1e9,
    weight: str = "normal",
    **how: Any,
) -> None:
    """Text of that height on a page, cut to the width; dollar signs and the like are just signs."""
    how = {"color": INK, "va": "baseline", **how}
    axes.text(
        x,
        y,
        fitted(text, pixels, width, weight),
        font=font(pixels, weight),
        parse_math=False,
        **how,
    )


def class_title(name: str) -> str:
    """A class's name as a person writes it: no number before it, no underscores.

    001.American_Redstart, as CUB-200-2011 has it, is American Redstart.
    """
    return re.sub(r"^\d{3}\.(?=.)", "", name).replace("_", " ").strip() or name


def drawable(text: str) -> str:
    """The text on one line, with a sign for each character that no installed typeface has.

    A warning, once for each script, says how to get a typeface.
    """
    known = _characters()
    # No page has room for more; a megabyte would take long to measure.
    line = " ".join(text[:1000].split())
    for sign in line:
        if ord(sign) not in known and sign.isalpha():
            _warn_of_script(unicodedata.name(sign, "").split(" ")[0])
    return "".join(sign if ord(sign) in known else _MISSING for sign in line)


def text_width(text: str, pixels: float, weight: str = "normal") -> float:
    """Pixels from the left end of the drawn text to the right."""
    return _RULER.get_text_width_height_descent(text, font(pixels, weight), ismath=False)[0]


def fitted(text: str, pixels: float, width: float, weight: str = "normal") -> str:
    """What is drawn of a text in a given width: all, or its beginning and an ellipsis."""
    text = drawable(text)
    if text_width(text, pixels, weight) <= width:
        return text
    shorter = text[: _length_that_fits(text, pixels, width, weight, _ELLIPSIS)]
    return shorter.rstrip() + _ELLIPSIS


def wrapped(text: str, pixels: float, width: float, lines: int) -> list[str]:
    """The text on at most so many lines of that width, the last cut.

    It is broken after a space, else after a sign as in file names, else anywhere.
    """
    left = drawable(text)
    found: list[str] = []
    while left and len(found) < lines - 1 and text_width(left, pixels) > width:
        most = max(1, _length_that_fits(left, pixels, width))
        ends = [most] if left[most : most + 1] == " " else []
        ends += [left.rfind(" ", 0, most) + 1, max(left.rfind(s, 0, most) + 1 for s in "_-/")]
        end = next((end for end in ends if end), most)
        found.append(left[:end].rstrip())
        left = left[end:].lstrip()
    return [*found, fitted(left, pixels, width)]


def _length_that_fits(
    text: str, pixels: float, width: float, weight: str = "normal", then: str = ""
) -> int:
    """How many of the text's first characters, followed by `then`, are no wider."""
    least, most = 0, len(text)
    while least < most:
        length = (least + most + 1) // 2
        if text_width(text[:length] + then, pixels, weight) <= width:
            least = length
        else:
            most = length - 1
    return least


# The user's own settings of matplotlib are for the user's own plots.
plain_style = style.context("default")

_RULER = RendererAgg(1, 1, DPI)


def families() -> list[str]:
    """The typefaces that text is drawn with, the first that has a character."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return [name for name in _TYPEFACES if name in installed]


@lru_cache(maxsize=64)
def font(pixels: float, weight: str = "normal") -> FontProperties:
    """The typefaces at that height."""
    return FontProperties(family=families(), size=points(pixels), weight=weight)


def points(pixels: float) -> float:
    """The same length in points, of which an inch has 72: matplotlib's unit of lines and text."""
    return pixels * 72 / DPI


@cache
def _warn_of_script(script: str) -> None:
    """Once for each script, whose name is the first word of its characters' Unicode names."""
    package = "fonts-noto-cjk" if script in _CJK else "fonts-unifont"
    logging.warning(
        "Pictures: no installed typeface has %s characters, which are drawn as %s; Debian's "
        "package %s brings one.", script, _MISSING, package,
    )  # fmt: skip


@lru_cache(maxsize=1)
def _characters() -> frozenset[int]:
    """Every character that one of the typefaces has."""
    found: set[int] = set()
    for name in families():
        path = font_manager.findfont(FontProperties(family=[name]))
        found |= font_manager.get_font(path).get_charmap().keys()
    return frozenset(found)
