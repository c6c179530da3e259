"""Draws the pictures of the README from a run of the demo: t-SNE, nearest images and curves.

Usage: python -m docs.draw_pictures docs [--run PREFIX]

Without --run it first trains the demo, which takes some minutes. The README shows the pictures in
a small size, so they have few pixels and few colors.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
import tempfile
from pathlib import Path

from PIL import Image

from embedding_learning import __main__ as program
from embedding_learning.data.datasets import glyphs
from embedding_learning.runtime.user_folders import find_cache_folder

ROOT = Path(__file__).resolve().parents[1]
# Of each picture its width in pixels and its number of colors.
PICTURES = {"tsne": (680, 48), "nearest": (880, 40), "curves": (720, 96)}
# The first image of every 25th test class is a query.
FIRST_CLASS, STEP, NEIGHBORS = 100, 25, 8


def demo_flags() -> list[str]:
    """Returns the flags of `make demo` without its prefix."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    (flags,) = re.findall(r"^DEMO_FLAGS \?= (.*)$", makefile, re.M)
    return [flag for flag in shlex.split(flags) if not flag.startswith("--save-model-prefix")]


def run(*arguments: str) -> None:
    """Runs a command of the program; a failure ends this one."""
    status = program.main(list(arguments))
    if status:
        sys.exit(status)


def draw(prefix: str, folder: Path) -> None:
    """Draws all pictures into the folder."""
    run("plot", "curves", prefix, str(folder / "curves.png"))
    run("plot", "tsne", prefix, str(folder / "tsne.png"), "--data-path=glyphs")
    gallery, nearest = str(folder / "glyphs.npy"), str(folder / "nearest.png")
    run("embed", prefix, "--data-path=glyphs", f"--output={gallery}")
    classes = sorted((glyphs.find_or_draw(Path(find_cache_folder())) / "images").iterdir())
    queries = [str(min(folder.iterdir())) for folder in classes[FIRST_CLASS::STEP]]
    run("search", prefix, gallery, *queries, f"-k={NEIGHBORS}", f"--picture={nearest}")


def shrink(source: Path, target: Path, width: int, colors: int) -> None:
    """Writes the picture with fewer pixels and colors, so that its file is small."""
    with Image.open(source) as picture:
        height = round(picture.height * width / picture.width)
        small = picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    # MAXCOVERAGE keeps the colors of thin lines apart.
    small = small.quantize(colors, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    small.save(target, format="PNG", optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="the folder of the pictures")
    parser.add_argument("--run", metavar="PREFIX", help="a finished run of the demo")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prefix = options.run
        if not prefix:
            prefix = str(folder / "glyphs")
            run("train", "--data-path=glyphs", *demo_flags(), f"--save-model-prefix={prefix}")
        draw(prefix, folder)
        for name, (width, colors) in PICTURES.items():
            picture = options.output / f"{name}.png"
            shrink(folder / f"{name}.png", picture, width, colors)
            print(f"{picture}: {picture.stat().st_size} bytes")


if __name__ == "__main__":
    main()
