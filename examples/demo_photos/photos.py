"""The photos of the demo: JPEGs of 4 to 12 megapixels like those of a camera, but painted by `scenes.py`.

They have the pixels, the file size and the sensor noise of photos, and some are stored on their side. The same number
always gives the same photo.
"""

from __future__ import annotations

from io import BytesIO
from random import Random

from PIL import Image, ImageChops

from examples.demo_photos.brushes import curve
from examples.demo_photos.scenes import SCENES

__all__ = ["VERSION", "paint_photo", "paint_wide_photo"]

VERSION = "1"
"""Increase it when the photos change, so that old ones are not reused."""

_SIZES = (
    (4000, 3000),
    (3648, 2736),
    (3264, 2448),
    (3840, 2560),
    (2592, 1944),
    (3456, 2592),
    (3000, 2000),
)
_SIDEWAYS = (3, 8, 15)  # numbers of portrait photos, which are stored on their side, like those of phones
_CANVAS = 1600  # pixels of the longer side of the painted scene, which is then enlarged; finer detail is only grain
_GRAIN = 20


def paint_photo(number: int) -> bytes:
    """Paint photo `number`, starting from 0, and return its JPEG. Takes about a second of CPU time."""
    return _paint(number, _SIZES[number % len(_SIZES)])


def paint_wide_photo() -> bytes:
    """Paint a panorama that is wider than the demo allows, and return its JPEG."""
    return _paint(0, (4800, 2400))


def _paint(number: int, size: tuple[int, int]) -> bytes:
    rng = Random(number)
    scene, mood = SCENES[number % len(SCENES)], number // len(SCENES)
    sideways = number in _SIDEWAYS
    if sideways:
        size = (size[1], size[0])
    scale = _CANVAS / max(size)
    painting = scene(rng, (round(size[0] * scale), round(size[1] * scale)), mood)
    photo = painting.resize(size, Image.Resampling.BICUBIC)
    photo = ImageChops.add(photo, _grain(rng, size), offset=-_GRAIN // 2)
    exif = Image.Exif()
    if sideways:
        photo = photo.transpose(Image.Transpose.ROTATE_90)
        exif[0x0112] = 6  # orientation: rotate by 90 degrees clockwise to view it upright
    target = BytesIO()
    photo.save(target, "JPEG", quality=92, exif=exif)
    return target.getvalue()


def _grain(rng: Random, size: tuple[int, int]) -> Image.Image:
    # Tile one piece of noise, mirrored at random: copies are cheaper than random bytes.
    noise = Image.frombytes("L", (1024, 1024), rng.randbytes(1024 * 1024))
    piece = curve(noise, lambda gray: gray * _GRAIN / 255)
    sheet = Image.new("L", size)
    for x in range(0, size[0], 1024):
        for y in range(0, size[1], 1024):
            sheet.paste(piece, (x, y))
            piece = piece.transpose(rng.choice([Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM]))
    return Image.merge("RGB", (sheet, sheet, sheet))
