"""Makes the pictures of the page in the documentation, light and dark: python -m tests.dashboard.picture docs."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

from PIL import Image

from asyncpool.dashboard import serve_dashboard
from tests.dashboard.browser import browser
from tests.dashboard.scene import scene

_SECONDS = 100
_SIZE = (1200, 1420)
_ALIKE = 27  # a distance of 3 in each of red, green and blue


_NAMES = {"light": "dashboard.png", "dark": "dashboard-dark.png"}


def _take(url: str, folder: Path) -> None:
    with browser(*_SIZE) as driver:
        driver.get(url)
        time.sleep(_SECONDS)
        driver.run("document.querySelector('#letters details').open = true")
        for scheme, name in _NAMES.items():
            driver.use_scheme(scheme)
            time.sleep(0.5)
            driver.screenshot(folder / name)
    for name in _NAMES.values():
        _reduce(folder / name)


def _reduce(path: Path) -> None:
    """Keep the 256 most frequent colors that are not alike, and draw each other one with the nearest of them."""
    image = Image.open(path).convert("RGB")
    found = image.getcolors(image.width * image.height)
    assert found is not None
    colors: Any = [color for _, color in sorted(found, reverse=True)]
    kept: list[Any] = []
    for color in colors:
        if len(kept) < 256 and all(_distance(color, other) > _ALIKE for other in kept):
            kept.append(color)
    numbers = {color: min(range(len(kept)), key=lambda n: _distance(color, kept[n])) for color in colors}
    reduced = Image.new("P", image.size)
    reduced.putpalette([level for color in kept for level in color])
    data = image.tobytes()
    reduced.putdata([numbers[tuple(data[start : start + 3])] for start in range(0, len(data), 3)])
    reduced.save(path, optimize=True)


def _distance(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    return sum((a - b) ** 2 for a, b in zip(one, other, strict=True))


async def _main(folder: Path) -> None:
    async with scene() as pools, serve_dashboard(*pools, actions=True, announce=None) as server:
        await asyncio.to_thread(_take, server.url, folder)


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1])))
