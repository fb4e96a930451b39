"""Draw one picture of all thumbnails with their names, to see the results at a glance.

A separate pool draws the tiles in threads; the event loop only pastes them onto the sheet.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import asyncpool
from examples.image_service.errors import OutputError
from examples.image_service.files import write_whole

__all__ = ["SheetLayout", "make_contact_sheet"]

_PAPER = (24, 26, 30)
_INK = (200, 204, 210)
_MAX_PIXELS = 40_000_000  # approximate limit of the sheet, so any viewer can open it: more images get smaller tiles
_WIDEST_TILE = 240
_READABLE_TILE = 90  # narrower tiles get no name


@dataclass(frozen=True, slots=True, kw_only=True)
class SheetLayout:
    """The positions of the tiles: a grid of about 3:2, with tiles as large as the limit of the sheet allows."""

    count: int
    columns: int
    tile: tuple[int, int]
    gap: int
    label: int

    @classmethod
    def of(cls, count: int, proportions: float = 4 / 3) -> SheetLayout:
        """Return the layout for `count` images; `proportions` is the width of their box divided by its height."""
        proportions = min(max(proportions, 0.25), 4.0)
        room = _MAX_PIXELS / max(1, count)
        width = max(8, min(_WIDEST_TILE, int(math.sqrt(room * proportions * 0.6))))
        height = max(6, round(width / proportions))
        gap = max(1, width // 15)
        label = 20 if width >= _READABLE_TILE else 0
        # Choose the number of columns that makes the whole sheet about 3:2.
        columns = round(math.sqrt(count * 1.5 * (height + gap + label) / (width + gap)))
        columns = max(1, min(count, columns))
        return cls(count=count, columns=columns, tile=(width, height), gap=gap, label=label)

    @property
    def size(self) -> tuple[int, int]:
        """The size of the sheet in pixels."""
        rows = math.ceil(self.count / self.columns)
        step = self._step
        return (self.columns * step[0] + self.gap, rows * step[1] + self.gap)

    def corner(self, number: int) -> tuple[int, int]:
        """Return the top left corner of a tile. Tiles are numbered from left to right, then from top to bottom."""
        row, column = divmod(number, self.columns)
        return (self.gap + column * self._step[0], self.gap + row * self._step[1])

    @property
    def _step(self) -> tuple[int, int]:
        return (self.tile[0] + self.gap, self.tile[1] + self.label + self.gap)

    def draw_tile(self, path: Path) -> Image.Image:
        """Draw a thumbnail in the middle of its tile, with its name below. The tile of a missing file stays blank."""
        width, height = self.tile
        tile = Image.new("RGB", (width, height + self.label), _PAPER)
        try:
            with Image.open(path) as image:
                image.draft("RGB", self.tile)
                image.thumbnail(self.tile)
                tile.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
        except OSError:
            ImageDraw.Draw(tile).rectangle((0, 0, width - 1, height - 1), outline=_INK)
        if self.label:
            font = ImageFont.load_default(13)
            pen = ImageDraw.Draw(tile)
            pen.text((width / 2, height + 4), _shortened(path.stem, width, pen, font), _INK, font, anchor="ma")
        return tile


def _shortened(
    name: str, width: int, pen: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> str:
    width -= 8  # keep neighboring names apart
    if pen.textlength(name, font) <= width:
        return name
    while len(name) > 1 and pen.textlength(f"{name}...", font) > width:
        name = name[:-1]
    return f"{name}..."


async def make_contact_sheet(thumbnails: Sequence[Path], path: Path, proportions: float = 4 / 3) -> None:
    """Write a PNG with a tile for each thumbnail, in their order. Waits for threads.

    Raises:
        OutputError: The file cannot be written.
    """
    layout = SheetLayout.of(len(thumbnails), proportions)
    sheet = Image.new("RGB", layout.size, _PAPER)
    draw = asyncpool.offload(layout.draw_tile)
    number = 0
    async with asyncpool.map(draw, thumbnails, workers=os.cpu_count() or 1) as tiles:
        async for tile in tiles:
            sheet.paste(tile, layout.corner(number))
            number += 1

    def write(path: Path) -> None:
        png = BytesIO()
        sheet.save(png, "PNG", compress_level=4)
        try:
            write_whole(path, png.getvalue())
        except OSError as error:
            raise OutputError(f"cannot write {path.name}: {error.strerror or error}") from error

    await asyncpool.offload(write)(path)
