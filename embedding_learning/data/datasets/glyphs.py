"""The built-in data set: characters drawn with the typefaces that matplotlib contains.

A class is a character. An image shows it in one typeface, in random colors, with a small random
affine transformation (a view). Nothing is downloaded: the set is drawn once into a cache folder, in
the layout of CUB-200-2011, and is read by the reader of that data set.
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

# Increase the number with every change of a drawn byte or a class (characters, faces, seed, ranges
# below). An older cache then stays unchanged, and a new one is drawn.
FOLDER = "glyphs-v1"

# Fixed lists, not a search at run time: the classes must not depend on the version of FreeType or
# matplotlib, or the recalls of two machines could not be compared. The candidates were letters
# (without clicks, which are only bars), digits and a few symbols, without Unicode decomposition and
# present in all FACES. They were taken in order, those with the fewest similar characters first. A
# character was left out if it looked like one already taken: a correlation of 0.95 or more between
# any two faces, scaled to one size.
LATIN = (
    "AEFGKLMNPQRSTUVWYZabcegknpqxyÆÐØÞßæðđĦŊŒŧƈƐƒƕƛƥƪƫƭƺƾɐɒɕɖɗɘəɚɝɞɟɠɣɥɦɧɨɪɬɮɯɰɱɲɳɷɹɻɽɾ"
    "ɿʁʂʆʇʈʉʊʋʌʍʎʐʑʒʓʔʕʖʘʙʚʛʝʞʣʤʦʧʨ"
)
GREEK = "ΔΞΣΨΩαβδζθμνξπςστφχϙϚϞϟϠϡ"
CYRILLIC = "ЂЄЉЊЋБДЖЛФЧЩЫЭЮЯгифцъьћџѢѣҐ"
SIGNS = "23456789#$%&*+<?@~¢£¤¥§©¬®±¶¿×÷†‡‰€∂"

# Only text faces whose character maps are Unicode. matplotlib's cm* faces have TeX's encodings ("A"
# in cmsy10 or cmex10 is another character), the other STIX files hold parts of symbols, and
# LastResort has a placeholder for every character.
FACES = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    *("DejaVuSansMono", "DejaVuSansMono-Bold"),
    *("DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
)
VIEWS = 2  # images of one character in one face

SIZE = 64  # side of an image, pixels
SCALE = 2  # a view is drawn larger by this factor and then reduced, for smooth edges
MARGIN = 2  # pixels at the border without ink
SEED = 20110

# Ranges of the views. At a rotation of 45 degrees, a plus would become a times sign.
TURN = 12.0  # degrees, in both directions
SHEAR = 0.15
STRETCH = 0.12  # logarithm of width / height
LONGER_SIDE = (34.0, 50.0)  # pixels
SHIFT = 6.0  # pixels, in both directions
CONTRAST = 90.0  # smallest difference in luminance of ink and background, of 255
GRADIENT = 30.0  # largest change of the background's color from center to border
BLUR = 0.8  # largest radius, pixels


def find_or_draw(cache_dir: Path) -> Path:
    """Returns the folder of the set in `cache_dir`; draws the set first if it is missing.

    Raises DataError if the folder cannot be written or the typefaces are missing.
    """
    cache_dir = Path(cache_dir)
    folder = cache_dir / FOLDER
    try:
        if not folder.is_dir():
            _draw_atomically(folder)
    except OSError as error:
        raise DataError(
            f"Cannot draw the glyph set into {cache_dir} ({error.strerror or error}): "
            "name a writable folder with --cache-dir."
        ) from error
    return folder


def _draw_atomically(folder: Path) -> None:
    """Draws into a temporary folder and renames it, so that `folder` is never incomplete."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    temporary.mkdir()
    try:
        count = len(list_characters())
        total = count * len(FACES) * VIEWS
        logging.info(
            "Drawing the glyph set (%d images of %d characters) into %s.", total, count, folder
        )
        draw(temporary)
        _publish(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _publish(temporary: Path, folder: Path) -> None:
    """Renames `temporary` to `folder`, unless another process has created `folder` meanwhile."""
    try:
        temporary.rename(folder)
    except OSError:
        # Both processes draw the same bytes, so the second can use the folder of the first.
        if not folder.is_dir():
            raise


def list_characters() -> list[str]:
    """Returns the characters in the order of their classes.

    Neighbors of one script go to different halves, so that the training classes (first half) and
    the test classes (second half) have the same mixture of scripts.
    """
    ordered = LATIN + GREEK + CYRILLIC + SIGNS
    return [*ordered[0::2], *ordered[1::2]]


def find_fonts() -> dict[str, Path]:
    """Returns the font file of each typeface in FACES.

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


def draw(folder: Path, characters: Sequence[str] | None = None, views: int = VIEWS) -> None:
    """Draws the images and writes the lists of the set into the empty `folder`.

    `characters` are in the order of their classes (default: all characters), and `views` is the
    number of images of a character in one face. The written bytes depend only on the arguments and
    on the installed fonts and libraries.
    Raises DataError if the typefaces are missing, OSError if `folder` cannot be written.
    """
    characters = list_characters() if characters is None else characters
    fonts = {name: load_font(path) for name, path in find_fonts().items()}
    names = [
        f"{number:03d}.{_ascii_name(character)}" for number, character in enumerate(characters, 1)
    ]
    files: list[str] = []
    labels: list[int] = []
    for number, (character, name) in enumerate(zip(characters, names), 1):
        (folder / "images" / name).mkdir(parents=True)
        for file, image in render_images(character, number, fonts, views):
            files.append(f"{name}/{file}")
            labels.append(number)
            image.save(folder / "images" / name / file, format="PNG")
    box = f"0.0 0.0 {SIZE:.1f} {SIZE:.1f}"
    _write_list(folder / "images.txt", files)
    _write_list(folder / "image_class_labels.txt", labels)
    _write_list(folder / "bounding_boxes.txt", [box] * len(files))
    _write_list(folder / "classes.txt", names)


def _ascii_name(character: str) -> str:
    """Returns a name of letters, digits and underscores for `character`."""
    return unicodedata.name(character).lower().replace(" ", "_").replace("-", "_")


def _write_list(path: Path, values: Sequence[object]) -> None:
    """Writes one line `ID VALUE` for each value; ids start at 1."""
    lines = [f"{identity} {value}\n" for identity, value in enumerate(values, 1)]
    path.write_bytes("".join(lines).encode())


def render_images(
    character: str, number: int, fonts: Mapping[str, ImageFont.FreeTypeFont], views: int = VIEWS
) -> Iterator[tuple[str, Image.Image]]:
    """Yields the file name and the pixels of each image of class `number`."""
    for position, (face, font) in enumerate(fonts.items()):
        ink = draw_ink(character, font)
        for view in range(views):
            instance = position * views + view + 1
            # Each image has its own generator: a change of one does not change the others.
            rng = np.random.default_rng([SEED, number, instance])
            yield f"{instance:02d}_{face}.png", render(ink, rng)


def load_font(path: Path) -> ImageFont.FreeTypeFont:
    """Returns the typeface in the file `path`, in a size that every view reduces.

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
    """Returns the ink of `character`, cropped to its edges: gray, 255 for full ink."""
    from PIL import Image, ImageDraw

    side = 4 * SIZE * SCALE  # no glyph of these faces is twice as large as its nominal size
    canvas = Image.new("L", (side, side))
    ImageDraw.Draw(canvas).text((side // 2, side // 2), character, fill=255, font=font, anchor="mm")
    return canvas.crop(canvas.getbbox())


def render(ink: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Returns a random view of `ink` (from `draw_ink`): RGB, SIZE x SIZE pixels, never cut off."""
    from PIL import Image, ImageFilter

    side = SIZE * SCALE
    view = _random_view(ink.width, ink.height, rng)
    # Pillow needs the inverse: the map from the view to the ink.
    inverse = np.linalg.inv(view)[:2].ravel().tolist()
    large = ink.transform(
        (side, side), Image.Transform.AFFINE, inverse, resample=Image.Resampling.BICUBIC
    )
    opacity = np.asarray(large.reduce(SCALE), dtype=np.float64)[..., None] / 255
    ink_color, background = _random_colors(rng)
    pixels = opacity * ink_color + (1 - opacity) * (background + _random_gradient(rng))
    image = Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(0, BLUR)))


def _random_view(width: int, height: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Returns the 3 x 3 map from the pixels of the ink to those of the enlarged view.

    The longer side of the ink gets a random length, so the size does not identify the character.
    """
    turn = math.radians(rng.uniform(-TURN, TURN))
    shear = rng.uniform(-SHEAR, SHEAR)
    stretch = math.exp(rng.uniform(-STRETCH, STRETCH) / 2)
    longer = SCALE * rng.uniform(*LONGER_SIDE)
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    linear = rotation @ [[1, shear], [0, 1]] @ np.diag([stretch, 1 / stretch])
    linear *= longer / max(width, height)
    room = SCALE * (SIZE - 2 * MARGIN)
    extent = np.abs(linear) @ [width, height]  # of the box around the rotated box of the ink
    shrink = min(1.0, room / extent.max())
    free = (room - shrink * extent) / 2
    shift = rng.uniform(-1, 1, size=2) * np.minimum(free, SCALE * SHIFT)
    view = np.eye(3)
    view[:2, :2] = shrink * linear
    view[:2, 2] = SCALE * SIZE / 2 + shift - view[:2, :2] @ [width / 2, height / 2]
    return view


def _random_colors(rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns clearly different colors of ink and background, each 3 floats from 0 to 255."""
    while True:
        ink_color, background = rng.uniform(0, 255, size=(2, 3))
        if abs((ink_color - background) @ [0.299, 0.587, 0.114]) >= CONTRAST:
            return ink_color, background


def _random_gradient(rng: np.random.Generator) -> NDArray[np.float64]:
    """Returns a change of color that grows linearly across the image: (SIZE, SIZE, 3)."""
    ramp = np.linspace(-1, 1, SIZE)
    across, down = rng.uniform(-GRADIENT / 2, GRADIENT / 2, size=(2, 3))
    change: NDArray[np.float64] = ramp[None, :, None] * across + ramp[:, None, None] * down
    return change
