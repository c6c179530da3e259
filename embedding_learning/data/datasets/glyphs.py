"""The built-in data set: characters drawn from the typefaces that matplotlib ships.

A class is a character and an image of it is one typeface seen through a small random
affine view, in random colours. Nothing is downloaded: the set is drawn once into a cache
folder, in the layout of CUB-200-2011, so that the reader of that data set reads it.
"""

from __future__ import annotations

import logging
import math
import shutil
import unicodedata
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from embedding_learning.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image, ImageFont

NAME = "glyphs"

# The number goes up with every change that alters a drawn byte or a class (characters,
# faces, seed, ranges below): an older cache then stays what it was, and a new one is drawn.
FOLDER = "glyphs-v1"

# Fixed lists, not a search at run time: the classes must not move with the version of
# FreeType or matplotlib, or recalls of two machines could not be compared. Letters (without
# clicks that are mere bars), digits and a few symbols, all without Unicode decomposition
# and standing in all FACES, were taken in turn, those with the fewest look-alikes first; a
# character was left out if it looked like one already taken: scaled to one size, a
# correlation of 0.95 or more between any two faces.
LATIN = (
    "AEFGKLMNPQRSTUVWYZabcegknpqxyÆÐØÞßæðđĦŊŒŧƈƐƒƕƛƥƪƫƭƺƾɐɒɕɖɗɘəɚɝɞɟɠɣɥɦɧɨɪɬɮɯɰɱɲɳɷɹɻɽɾ"
    "ɿʁʂʆʇʈʉʊʋʌʍʎʐʑʒʓʔʕʖʘʙʚʛʝʞʣʤʦʧʨ"
)
GREEK = "ΔΞΣΨΩαβδζθμνξπςστφχϙϚϞϟϠϡ"
CYRILLIC = "ЂЄЉЊЋБДЖЛФЧЩЫЭЮЯгифцъьћџѢѣҐ"
SIGNS = "23456789#$%&*+<?@~¢£¤¥§©¬®±¶¿×÷†‡‰€∂"

# Only true text faces whose character maps are Unicode: matplotlib's cm* faces have TeX's
# own encodings (a lookup of "A" in cmsy10 or cmex10 gives something else), the other STIX
# files hold parts of symbols, and LastResort has a placeholder for everything.
FACES = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    *("DejaVuSansMono", "DejaVuSansMono-Bold"),
    *("DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
)
VIEWS = 2  # images of one character in one face

SIZE = 64  # side of an image, pixels
SCALE = 2  # the view is made this much larger and then reduced: smooth edges
MARGIN = 2  # pixels at the rim that ink never enters
SEED = 20110

# Ranges of the views. A turn stays well below the 45 degrees that make a plus a times sign.
TURN = 12.0  # degrees either way
SHEAR = 0.15
STRETCH = 0.12  # log of width over height
LONGER_SIDE = (34.0, 50.0)  # pixels
SHIFT = 6.0  # pixels either way
CONTRAST = 90.0  # least difference of ink and ground in luminance, of 255
GRADIENT = 30.0  # largest change of the ground's colour from the centre to the rim
BLUR = 0.8  # largest radius, pixels


def find_or_draw(cache_dir: Path) -> Path:
    """Return the folder of the set under `cache_dir`, drawing it there if it is missing.

    Raises DataError if the folder cannot be written or the typefaces are missing.
    """
    cache_dir = Path(cache_dir)
    folder = cache_dir / FOLDER
    try:
        if not folder.is_dir():
            _draw_aside(folder)
    except OSError as error:
        raise DataError(
            f"Cannot draw the glyph set into {cache_dir} ({error.strerror or error}): "
            "name a writable folder with --cache-dir."
        ) from error
    return folder


def _draw_aside(folder: Path) -> None:
    """Draw into a sibling of `folder` and rename it, so that `folder` is never half full."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    aside.mkdir()
    try:
        count = len(list_characters())
        total = count * len(FACES) * VIEWS
        logging.info(
            "Drawing the glyph set (%d images of %d characters) into %s.", total, count, folder
        )
        draw(aside)
        _publish(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _publish(aside: Path, folder: Path) -> None:
    """Rename `aside` to `folder`, unless another process has done so meanwhile."""
    try:
        aside.rename(folder)
    except OSError:
        # Both processes draw the same bytes, so the first one's folder serves the second.
        if not folder.is_dir():
            raise


def list_characters() -> list[str]:
    """Return the characters in the order of their classes.

    Neighbours of one script go to different halves, so the training classes (first half)
    and the test classes (second half) have the same mixture of scripts.
    """
    ordered = LATIN + GREEK + CYRILLIC + SIGNS
    return [*ordered[0::2], *ordered[1::2]]


def find_fonts() -> dict[str, Path]:
    """Return the font file of each typeface in FACES.

    Raises DataError if matplotlib or one of its files is missing, or lacks a character.
    """
    try:
        import matplotlib
        from matplotlib.ft2font import FT2Font
    except ImportError as error:
        raise DataError(
            f"The glyph set needs the typefaces of matplotlib ({error}): pip install matplotlib."
        ) from error
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    wanted = {ord(character) for character in list_characters()}
    paths = {name: fonts / f"{name}.ttf" for name in FACES}
    for name, path in paths.items():
        if not path.is_file() or not wanted <= FT2Font(str(path)).get_charmap().keys():
            raise DataError(
                f"The typeface {name} of matplotlib is missing or incomplete in {fonts}: "
                "pip install --force-reinstall matplotlib."
            )
    return paths


def draw(folder: Path, drawn: Sequence[str] | None = None, views: int = VIEWS) -> None:
    """Draw the images and the lists of the set into the empty `folder`.

    `drawn` holds the characters, in the order of their classes (default: all of them), and
    `views` is the number of images of a character in one face. The bytes written depend on
    the arguments and on the installed fonts and libraries, and on nothing else.
    Raises DataError if the typefaces are missing, OSError if `folder` cannot be written.
    """
    drawn = list_characters() if drawn is None else drawn
    fonts = {name: load_font(path) for name, path in find_fonts().items()}
    names = [f"{number:03d}.{_name(character)}" for number, character in enumerate(drawn, 1)]
    files: list[str] = []
    labels: list[int] = []
    for number, (character, name) in enumerate(zip(drawn, names), 1):
        (folder / "images" / name).mkdir(parents=True)
        for file, image in render_images(character, number, fonts, views):
            files.append(f"{name}/{file}")
            labels.append(number)
            image.save(folder / "images" / name / file, format="PNG")
    box = f"0.0 0.0 {SIZE:.1f} {SIZE:.1f}"
    _write(folder / "images.txt", files)
    _write(folder / "image_class_labels.txt", labels)
    _write(folder / "bounding_boxes.txt", [box] * len(files))
    _write(folder / "classes.txt", names)


def _name(character: str) -> str:
    """Return a name of letters, digits and underscores for `character`."""
    return unicodedata.name(character).lower().replace(" ", "_").replace("-", "_")


def _write(path: Path, values: Sequence[object]) -> None:
    """Write one line `ID VALUE` for each value, ids from 1."""
    lines = [f"{identity} {value}\n" for identity, value in enumerate(values, 1)]
    path.write_bytes("".join(lines).encode())


def render_images(
    character: str, number: int, fonts: Mapping[str, ImageFont.FreeTypeFont], views: int = VIEWS
) -> Iterator[tuple[str, Image.Image]]:
    """Yield the file name and the picture of each image of class `number`."""
    for position, (face, font) in enumerate(fonts.items()):
        ink = draw_ink(character, font)
        for view in range(views):
            instance = position * views + view + 1
            # One generator an image: a change to one leaves all others as they were.
            rng = np.random.default_rng([SEED, number, instance])
            yield f"{instance:02d}_{face}.png", render(ink, rng)


def load_font(path: Path) -> ImageFont.FreeTypeFont:
    """Return the typeface in the file `path`, large enough to be reduced in every view.

    Raises DataError if Pillow is missing or cannot read the file.
    """
    try:
        from PIL import ImageFont

        # The basic layout is in every Pillow; Raqm is not, and may place glyphs differently.
        return ImageFont.truetype(
            str(path), size=SIZE * SCALE, layout_engine=ImageFont.Layout.BASIC
        )
    except ImportError as error:
        raise DataError(f"The glyph set needs Pillow ({error}): pip install pillow.") from error
    except OSError as error:
        raise DataError(
            f"Pillow cannot read the typeface {path} ({error}): "
            "pip install --force-reinstall matplotlib pillow."
        ) from error


def draw_ink(character: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """Return the ink of `character` cropped to its edges: grey, 255 where there is ink."""
    from PIL import Image, ImageDraw

    room = 4 * SIZE * SCALE  # no glyph of these faces is twice as large as its nominal size
    canvas = Image.new("L", (room, room))
    ImageDraw.Draw(canvas).text((room // 2, room // 2), character, fill=255, font=font, anchor="mm")
    return canvas.crop(canvas.getbbox())


def render(ink: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return one random view of `ink` (from `draw_ink`): RGB, SIZE x SIZE pixels, never clipped."""
    from PIL import Image, ImageFilter

    side = SIZE * SCALE
    view = _view(ink.width, ink.height, rng)
    # Pillow wants the map from the view back to the ink.
    back = np.linalg.inv(view)[:2].ravel().tolist()
    large = ink.transform(
        (side, side), Image.Transform.AFFINE, back, resample=Image.Resampling.BICUBIC
    )
    cover = np.asarray(large.reduce(SCALE), dtype=np.float64)[..., None] / 255
    front, ground = _colours(rng)
    pixels = cover * front + (1 - cover) * (ground + _gradient(rng))
    image = Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(0, BLUR)))


def _view(width: int, height: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the 3 x 3 map from the ink's pixels to those of the enlarged view.

    The ink's longer side gets a random length, so size tells nothing about the character.
    """
    turn = math.radians(rng.uniform(-TURN, TURN))
    shear = rng.uniform(-SHEAR, SHEAR)
    stretch = math.exp(rng.uniform(-STRETCH, STRETCH) / 2)
    longer = SCALE * rng.uniform(*LONGER_SIDE)
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    linear = rotation @ [[1, shear], [0, 1]] @ np.diag([stretch, 1 / stretch])
    linear *= longer / max(width, height)
    room = SCALE * (SIZE - 2 * MARGIN)
    extent = np.abs(linear) @ [width, height]  # of the box around the turned box of the ink
    shrink = min(1.0, room / extent.max())
    free = (room - shrink * extent) / 2
    shift = rng.uniform(-1, 1, size=2) * np.minimum(free, SCALE * SHIFT)
    view = np.eye(3)
    view[:2, :2] = shrink * linear
    view[:2, 2] = SCALE * SIZE / 2 + shift - view[:2, :2] @ [width / 2, height / 2]
    return view


def _colours(rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the colours of ink and ground, each 3 floats of 0 to 255, in clear contrast."""
    while True:
        front, ground = rng.uniform(0, 255, size=(2, 3))
        if abs((front - ground) @ [0.299, 0.587, 0.114]) >= CONTRAST:
            return front, ground


def _gradient(rng: np.random.Generator) -> NDArray[np.float64]:
    """Return a change of colour that grows linearly across the image: (SIZE, SIZE, 3)."""
    ramp = np.linspace(-1, 1, SIZE)
    across, down = rng.uniform(-GRADIENT / 2, GRADIENT / 2, size=(2, 3))
    change: NDArray[np.float64] = ramp[None, :, None] * across + ramp[:, None, None] * down
    return change
