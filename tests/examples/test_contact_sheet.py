"""One picture of all thumbnails."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from examples.image_service.contact_sheet import SheetLayout, make_contact_sheet
from examples.image_service.errors import OutputError

RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.fixture
def thumbnails(tmp_path: Path) -> list[Path]:
    """Two red ones, lying, and two blue ones, standing."""
    paths = [tmp_path / f"img00{number}.jpg" for number in range(4)]
    for number, path in enumerate(paths):
        Image.new("RGB", (800, 600) if number < 2 else (450, 600), RED if number < 2 else BLUE).save(path)
    return paths


@pytest.mark.asyncio
async def test_every_thumbnail_has_a_tile_in_their_order(thumbnails: list[Path], tmp_path: Path) -> None:
    await make_contact_sheet(thumbnails, tmp_path / "sheet.png")

    layout = SheetLayout.of(4)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert (sheet.format, sheet.size) == ("PNG", layout.size)
        for number, color in enumerate([RED, RED, BLUE, BLUE]):
            x, y = layout.corner(number)
            middle = sheet.getpixel((x + layout.tile[0] // 2, y + layout.tile[1] // 2))
            assert isinstance(middle, tuple)
            assert all(abs(a - b) < 10 for a, b in zip(middle, color, strict=True))


@pytest.mark.asyncio
async def test_a_name_stands_under_its_tile(thumbnails: list[Path], tmp_path: Path) -> None:
    await make_contact_sheet(thumbnails, tmp_path / "sheet.png")

    layout = SheetLayout.of(4)
    x, y = layout.corner(0)
    with Image.open(tmp_path / "sheet.png") as sheet:
        label = sheet.crop((x, y + layout.tile[1], x + layout.tile[0], y + layout.tile[1] + layout.label))
        assert len(label.getcolors() or []) > 5


@pytest.mark.asyncio
async def test_a_thumbnail_that_is_gone_leaves_its_tile_blank(thumbnails: list[Path], tmp_path: Path) -> None:
    thumbnails[1].unlink()

    await make_contact_sheet(thumbnails, tmp_path / "sheet.png")

    assert (tmp_path / "sheet.png").exists()


@pytest.mark.asyncio
async def test_a_sheet_that_cannot_be_written_is_told_in_a_sentence(thumbnails: list[Path], tmp_path: Path) -> None:
    (tmp_path / "sheet.png").mkdir()

    with pytest.raises(OutputError, match=r"^cannot write sheet.png: "):
        await make_contact_sheet(thumbnails, tmp_path / "sheet.png")
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".part")]


@pytest.mark.parametrize("proportions", [0.01, 0.75, 4 / 3, 3.0, 1000.0])
@pytest.mark.parametrize("count", [1, 2, 3, 24, 1000, 10_000, 100_000])
def test_a_sheet_has_room_for_all_tiles_and_is_never_too_large_to_open(count: int, proportions: float) -> None:
    layout = SheetLayout.of(count, proportions)

    width, height = layout.size
    assert width * height <= 70_000_000
    corners = [layout.corner(number) for number in range(count)]
    for (x, y), (next_x, next_y) in pairwise(corners):
        assert next_x >= x + layout.tile[0] or next_y >= y + layout.tile[1] + layout.label
    assert all(x + layout.tile[0] <= width for x, _ in corners)
    assert all(y + layout.tile[1] + layout.label <= height for _, y in corners)


def test_a_long_name_is_shortened_to_its_tile(tmp_path: Path) -> None:
    path = tmp_path / f"{'w' * 100}.jpg"
    Image.new("RGB", (80, 60)).save(path)
    layout = SheetLayout.of(1)

    tile = layout.draw_tile(path)

    assert tile.size == (layout.tile[0], layout.tile[1] + layout.label)
    ink = tile.crop((0, layout.tile[1], *tile.size)).convert("L").point([0] * 60 + [255] * 196).getbbox()
    assert ink is not None
    assert 0 < ink[0] < ink[2] < layout.tile[0]
