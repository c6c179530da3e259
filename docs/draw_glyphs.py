"""Draw the picture of the built-in data set that the README shows.

Usage: python -m docs.draw_glyphs docs/glyphs.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from embedding_learning.data.datasets import glyphs

ROWS = {
    "Training: 4 of 100 characters": "RδЖ@",
    "Test: 4 of 100 other characters": "eΨД5",
}
COLUMNS = 12
GAP = 6  # pixels between two images
HEADING = 34  # height of a heading, pixels
STEP = 16  # of the colors kept: coarse ones make the file small enough for a README


def row(character: str) -> list[Image.Image]:
    """Return COLUMNS of the set's own images of `character`, spread over its typefaces."""
    fonts = {name: glyphs.load_font(path) for name, path in glyphs.find_fonts().items()}
    number = glyphs.list_characters().index(character) + 1
    pictures = [image for _, image in glyphs.render_images(character, number, fonts)]
    chosen = np.linspace(0, len(pictures) - 1, COLUMNS).round().astype(int)
    return [pictures[position] for position in chosen]


def sheet() -> Image.Image:
    """Return the whole picture: a heading and its rows, for each half of the set."""
    step = glyphs.SIZE + GAP
    count = sum(len(characters) for characters in ROWS.values())
    size = (COLUMNS * step + GAP, len(ROWS) * HEADING + count * step + GAP)
    picture = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(picture)
    font = ImageFont.truetype(str(glyphs.find_fonts()["DejaVuSans"]), size=17)
    top = 0
    for heading, characters in ROWS.items():
        pen.text((GAP, top + HEADING // 2), heading, fill="black", font=font, anchor="lm")
        top += HEADING
        for character in characters:
            for column, image in enumerate(row(character)):
                picture.paste(image, (GAP + column * step, top))
            top += step
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw a contact sheet of the glyph set.")
    parser.add_argument("output", type=Path, help="the PNG file to write")
    output = parser.parse_args().output
    coarse = sheet().point(lambda value: min(255, (value + STEP // 2) // STEP * STEP))
    coarse.save(output, format="PNG", optimize=True)


if __name__ == "__main__":
    main()
