"""The basis of all plots: a page measured in pixels, text that fits, and writing the file."""

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

# From 3.11 on matplotlib warns of a typeface without bold; it draws the regular one instead.
logging.getLogger(font_manager.__name__).setLevel(logging.ERROR)

# A function from an image's row to its pixels: RGB, uint8, (height, width, 3), of any size.
Thumbnail = Callable[[int], np.ndarray]

INK, GRAY, FAINT, PAPER = "#1b1f24", "#59636e", "#d8dee4", "#ffffff"
# With a power of two, matplotlib rounds no size of a whole number of pixels.
DPI = 128
SUFFIXES = (".png", ".svg")
# Photographs take a third of the time of zlib's usual level 6, and 2 % more space.
_PNG_COMPRESSION = 4

# Matplotlib brings DejaVu Sans, which has no Chinese, Japanese or Korean characters. Desktop
# systems have some of the others. Those that are installed are used.
_TYPEFACES = (
    "DejaVu Sans", "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans CJK TC", "Noto Sans CJK KR",
    "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "Droid Sans Fallback", "PingFang SC",
    "Hiragino Sans", "Apple SD Gothic Neo", "Arial Unicode MS", "Microsoft YaHei", "Yu Gothic",
    "Malgun Gothic", "Noto Sans Thai", "Noto Sans Devanagari", "Noto Sans Bengali",
    "Noto Sans Tamil", "Noto Sans Telugu", "Noto Sans Ethiopic", "Unifont",
)  # fmt: skip
# First words of the Unicode names of characters that are in Debian's package of CJK typefaces.
_CJK = ("CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "HANGUL", "BOPOMOFO", "FULLWIDTH")
_MISSING, _ELLIPSIS = "\N{REPLACEMENT CHARACTER}", "\N{HORIZONTAL ELLIPSIS}"


def check_plot_path(path: str) -> None:
    """Raises UsageError if no plot can be written to this path. Writes nothing."""
    check_output_path(path, SUFFIXES)


def save(figure: Figure, path: str) -> None:
    """Writes the figure atomically, in the format of the path's suffix.

    Equal figures give equal bytes. Raises UsageError if the file cannot be written.
    """
    check_plot_path(path)
    suffix = path[-3:].lower()
    metadata = {"Date": None} if suffix == "svg" else {}
    repeatable = matplotlib.rc_context(
        {"svg.hashsalt": "embedding_learning", "svg.fonttype": "path"}
    )
    compression = {"compress_level": _PNG_COMPRESSION}
    options: dict[str, Any] = {"pil_kwargs": compression} if suffix == "png" else {}
    content = io.BytesIO()
    with repeatable:
        figure.savefig(content, format=suffix, metadata=metadata, **options)
    write_bytes(path, content.getvalue())


def page(width: int, height: int) -> tuple[Figure, Axes]:
    """Returns a white page of this size; its axes count pixels from the upper left corner."""
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor=PAPER)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set(xlim=(0, width), ylim=(height, 0), autoscale_on=False)
    axes.axis("off")
    return figure, axes


def show(axes: Axes, canvas: np.ndarray) -> None:
    """Shows the canvas (height, width, 3) on a page of its size, pixel by pixel."""
    height, width = canvas.shape[:2]
    axes.imshow(canvas, extent=(0, width, height, 0), interpolation="nearest", aspect="auto")
    axes.set(xlim=(0, width), ylim=(height, 0))


def blank(width: int, height: int) -> np.ndarray:
    """Returns a white canvas, (height, width, 3)."""
    return np.full((height, width, 3), 255, np.uint8)


def paste(canvas: np.ndarray, image: np.ndarray, left: int, top: int, side: int) -> None:
    """Puts the image into the center of a square of the canvas, as large as fits undistorted."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    width, height = max(1, round(width * scale)), max(1, round(height * scale))
    # INTER_AREA averages over the area of a pixel; for enlarging it would only repeat pixels.
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    image = cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=interpolation)
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
    **properties: Any,
) -> None:
    """Writes text of this height on a page, cut to the width. No character is markup."""
    properties = {"color": INK, "va": "baseline", **properties}
    axes.text(
        x,
        y,
        fitted(text, pixels, width, weight),
        font=font(pixels, weight),
        parse_math=False,
        **properties,
    )


def class_title(name: str) -> str:
    """Returns a class's name without the number before it and without underscores.

    001.American_Redstart of CUB-200-2011 becomes American Redstart.
    """
    return re.sub(r"^\d{3}\.(?=.)", "", name).replace("_", " ").strip() or name


def drawable(text: str) -> str:
    """Returns the text on one line, with a mark for each character that no typeface has.

    A warning, once for each script, says how to install a typeface.
    """
    known = _characters()
    # No page has room for more, and a megabyte would take long to measure.
    line = " ".join(text[:1000].split())
    for sign in line:
        if ord(sign) not in known and sign.isalpha():
            _warn_of_script(unicodedata.name(sign, "").split(" ")[0])
    return "".join(sign if ord(sign) in known else _MISSING for sign in line)


def text_width(text: str, pixels: float, weight: str = "normal") -> float:
    """Returns the width of the drawn text in pixels."""
    return _RULER.get_text_width_height_descent(text, font(pixels, weight), ismath=False)[0]


def fitted(text: str, pixels: float, width: float, weight: str = "normal") -> str:
    """Returns the text if it fits the width, else its beginning and an ellipsis."""
    text = drawable(text)
    if text_width(text, pixels, weight) <= width:
        return text
    shorter = text[: _length_that_fits(text, pixels, width, weight, _ELLIPSIS)]
    return shorter.rstrip() + _ELLIPSIS


def wrapped(text: str, pixels: float, width: float, lines: int) -> list[str]:
    """Returns the text on at most so many lines of this width. The last line is cut.

    Lines end after a space, else after a sign as in file names, else anywhere.
    """
    rest = drawable(text)
    wrapped_lines: list[str] = []
    while rest and len(wrapped_lines) < lines - 1 and text_width(rest, pixels) > width:
        most = max(1, _length_that_fits(rest, pixels, width))
        ends = [most] if rest[most : most + 1] == " " else []
        ends += [rest.rfind(" ", 0, most) + 1, max(rest.rfind(s, 0, most) + 1 for s in "_-/")]
        end = next((end for end in ends if end), most)
        wrapped_lines.append(rest[:end].rstrip())
        rest = rest[end:].lstrip()
    return [*wrapped_lines, fitted(rest, pixels, width)]


def _length_that_fits(
    text: str, pixels: float, width: float, weight: str = "normal", suffix: str = ""
) -> int:
    """Returns how many first characters of the text, followed by the suffix, fit the width."""
    least, most = 0, len(text)
    while least < most:
        length = (least + most + 1) // 2
        if text_width(text[:length] + suffix, pixels, weight) <= width:
            least = length
        else:
            most = length - 1
    return least


# The user's settings of matplotlib do not change these plots.
plain_style = style.context("default")

_RULER = RendererAgg(1, 1, DPI)


def families() -> list[str]:
    """Returns the installed typefaces; a character is drawn with the first that has it."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return [name for name in _TYPEFACES if name in installed]


@lru_cache(maxsize=64)
def font(pixels: float, weight: str = "normal") -> FontProperties:
    """Returns the typefaces at this height."""
    return FontProperties(family=families(), size=points(pixels), weight=weight)


def points(pixels: float) -> float:
    """Converts pixels to points (72 an inch), matplotlib's unit for lines and text."""
    return pixels * 72 / DPI


@cache
def _warn_of_script(script: str) -> None:
    """Warns once for each script: the first word of its characters' Unicode names."""
    package = "fonts-noto-cjk" if script in _CJK else "fonts-unifont"
    logging.warning(
        "Plots: no installed typeface has %s characters, which are drawn as %s; Debian's "
        "package %s brings one.", script, _MISSING, package,
    )  # fmt: skip


@lru_cache(maxsize=1)
def _characters() -> frozenset[int]:
    """Returns all characters that the installed typefaces have."""
    characters: set[int] = set()
    for name in families():
        path = font_manager.findfont(FontProperties(family=[name]))
        characters |= font_manager.get_font(path).get_charmap().keys()
    return frozenset(characters)
