"""Tools to paint a landscape: gradients, fractal noise, skylines, stars, water.

They need only Pillow: noise is made of enlarged random bytes, and shapes are drawn, blurred and composited. The
pictures themselves are in `scenes.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from random import Random
from typing import TypeAlias

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps

Color: TypeAlias = tuple[int, int, int]
Size: TypeAlias = tuple[int, int]

BLACK: Color = (0, 0, 0)
WHITE: Color = (255, 255, 255)


def mix(one: Color, other: Color, share: float) -> Color:
    """Mix two colors: 0 gives `one`, 1 gives `other`."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(one, other, strict=True))
    return (red, green, blue)


def sky(size: Size, stops: Sequence[Color]) -> Image.Image:
    """A smooth vertical gradient over all of the stops, from the top to the bottom."""
    column = Image.new("RGB", (1, len(stops)))
    column.putdata(list(stops))
    return column.resize(size, Image.Resampling.BICUBIC)


def noise(rng: Random, size: Size, cells: Size) -> Image.Image:
    """Soft gray noise, with as many light and dark spots across and down as there are cells."""
    wide, high = max(2, cells[0]), max(2, cells[1])
    return Image.frombytes("L", (wide, high), rng.randbytes(wide * high)).resize(size, Image.Resampling.BICUBIC)


def clouds(rng: Random, size: Size, cells: Size, octaves: int = 6) -> Image.Image:
    """Fractal noise: each octave has twice the cells of the one before, and about half its weight."""
    picture = noise(rng, size, cells)
    for octave in range(1, octaves):
        finer = noise(rng, size, (cells[0] << octave, cells[1] << octave))
        picture = Image.blend(picture, finer, 0.55**octave / (1 + 0.55**octave))
    return ImageOps.autocontrast(picture, cutoff=1)


def curve(picture: Image.Image, new_value: Callable[[int], float]) -> Image.Image:
    """Replace the value of each pixel, in each band, by a function of that value."""
    table = [max(0, min(255, round(new_value(value)))) for value in range(256)]
    return picture.point(table * len(picture.getbands()))


def window(picture: Image.Image, low: int, high: int, most: int = 255) -> Image.Image:
    """Stretch the grays from `low` to `high` to the range 0 to `most`, to make a mask from noise."""
    return curve(picture, lambda gray: (gray - low) / (high - low) * most if gray < high else most)


def glow(size: Size, center: tuple[float, float], radius: float, strength: float = 1.0) -> Image.Image:
    """A mask that is brightest at the center and fades out to the radius."""
    side = max(2, round(2 * radius))
    spot = ImageOps.invert(Image.radial_gradient("L")).resize((side, side), Image.Resampling.BICUBIC)
    # The gradient is 0 only in the corners. Cut it off where it meets the sides, so that it becomes a circle.
    spot = curve(spot, lambda gray: (max(0, gray - 75) / 180) ** 1.6 * 255 * strength)
    mask = Image.new("L", size)
    mask.paste(spot, (round(center[0] * size[0] - radius), round(center[1] * size[1] - radius)))
    return mask


def tint(picture: Image.Image, color: Color, mask: Image.Image) -> None:
    """Lay a color over the picture where the mask is bright."""
    picture.paste(color, (0, 0), mask)


def shine(picture: Image.Image, color: Color, mask: Image.Image) -> Image.Image:
    """Add light of a color where the mask is bright."""
    light = Image.new("RGB", picture.size)
    light.paste(color, (0, 0), mask)
    return ImageChops.screen(picture, light)


def ridge(rng: Random, width: int, base: float, height: float, roughness: float) -> list[tuple[int, float]]:
    """Return the skyline of a mountain range, by midpoint displacement: (x, y) pairs from left to right."""
    heights = [rng.uniform(-0.5, 0.5), rng.uniform(-0.5, 0.5)]
    spread = 1.0
    while len(heights) < width // 3:
        middles = [(a + b) / 2 + rng.uniform(-spread, spread) for a, b in pairwise(heights)]
        heights = [h for pair in zip(heights, middles, strict=False) for h in pair] + heights[-1:]
        spread *= roughness
    low, high = min(heights), max(heights)
    step = width / (len(heights) - 1)
    return [(round(i * step), base - height * (h - low) / (high - low)) for i, h in enumerate(heights)]


def below(size: Size, skyline: Sequence[tuple[float, float]]) -> Image.Image:
    """A mask of everything below a skyline."""
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).polygon([*skyline, (size[0], size[1]), (0, size[1])], fill=255)
    return mask


def stars(rng: Random, picture: Image.Image, count: int, horizon: float = 1.0) -> None:
    """Sprinkle stars of many brightnesses above the horizon."""
    draw = ImageDraw.Draw(picture)
    for _ in range(count):
        x, y = rng.random() * picture.width, rng.random() * picture.height * horizon
        light = round(255 * rng.random() ** 2.5)
        radius = 0.6 if light < 190 else 1.5
        shade = mix((light, light, light), rng.choice([(190, 210, 255), (255, 235, 200)]), 0.4)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=mix(BLACK, shade, light / 255))


def water(rng: Random, above: Image.Image, size: Size, deep: Color, share: float) -> Image.Image:
    """Paint a lake: the picture above it upside down, in ripples that grow towards the viewer."""
    mirror = ImageOps.flip(above).resize(size)
    ripples = noise(rng, size, (size[0] // 60, size[1] // 3))
    # Shift each row sideways by a smooth random walk, which looks like water.
    shaken = Image.new("RGB", size)
    for y in range(0, size[1], 2):
        drift = round((1 + 10 * y / size[1]) * math.sin(y * 0.55 + 3 * rng.random()))
        shaken.paste(mirror.crop((0, y, size[0], y + 2)), (drift, y))
        if drift > 0:
            shaken.paste(mirror.crop((0, y, drift, y + 2)), (0, y))
        elif drift < 0:
            shaken.paste(mirror.crop((size[0] + drift, y, size[0], y + 2)), (size[0] + drift, y))
    shaken = Image.blend(shaken.filter(ImageFilter.GaussianBlur(1.2)), Image.new("RGB", size, deep), share)
    return shine(shaken, (70, 76, 84), window(ripples, 150, 255, 150))


def shaded(rng: Random, size: Size, dark: Color, light: Color, cells: Size) -> Image.Image:
    """Ground: fractal noise between two colors, lit from the side."""
    relief = clouds(rng, size, cells, 6)
    slopes = relief.filter(ImageFilter.Kernel((3, 3), (-2, -1, 0, -1, 0, 1, 0, 1, 2), 2.0, 128))
    return ImageOps.colorize(Image.blend(relief, ImageOps.autocontrast(slopes, cutoff=1), 0.5), dark, light)
