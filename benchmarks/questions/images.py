"""Images per second: whether `offload` uses all cores."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Coroutine, Sequence
from io import BytesIO
from typing import Any

from asyncpool import WorkerPool, offload
from benchmarks.harness import Case, Figures, Question, Settings, count_cpus
from benchmarks.installed import installed

__all__ = ["IMAGES"]

_SIZE = (3000, 2000)
_THUMBNAIL = (800, 600)


def _cases(settings: Settings) -> Sequence[Case]:
    images = settings.count(60)
    return [
        Case(
            name=f"{images} JPEGs of {_SIZE[0] * _SIZE[1] / 1e6:.0f} megapixels to {_THUMBNAIL[0]}x{_THUMBNAIL[1]}",
            contenders=dict.fromkeys(_WAYS, 3),
            parameters={"images": images},
        )
    ]


def _photo() -> bytes:
    """Return a JPEG as large as a photo: a gradient with noise like that of a sensor."""
    from PIL import Image, ImageChops

    gradient = Image.linear_gradient("L").resize(_SIZE)
    picture = Image.merge("RGB", [ImageChops.add(gradient, Image.effect_noise(_SIZE, 20), 2.0) for _ in range(3)])
    target = BytesIO()
    picture.save(target, "JPEG", quality=90)
    return target.getvalue()


def _thumbnail(photo: bytes) -> int:
    from PIL import Image

    with Image.open(BytesIO(photo)) as picture:
        picture.thumbnail(_THUMBNAIL)
        target = BytesIO()
        picture.save(target, "JPEG", quality=85)
    return len(target.getvalue())


async def _one_by_one(photos: Sequence[bytes], workers: int) -> list[int]:
    return [_thumbnail(photo) for photo in photos]


async def _in_threads(photos: Sequence[bytes], workers: int) -> list[int]:
    semaphore = asyncio.Semaphore(workers)

    async def limited(photo: bytes) -> int:
        async with semaphore:
            return await asyncio.to_thread(_thumbnail, photo)

    return await asyncio.gather(*map(limited, photos))


async def _offloaded(photos: Sequence[bytes], workers: int) -> list[int]:
    async with WorkerPool(offload(_thumbnail), workers=workers) as pool:
        return await pool.map(photos)


_WAYS: dict[str, Callable[[Sequence[bytes], int], Coroutine[Any, Any, list[int]]]] = {
    "one after another": _one_by_one,
    "to_thread + Semaphore": _in_threads,
    "pool.map(offload)": _offloaded,
}


async def _measure(contender: str, *, images: int) -> Figures:
    photo, cores = _photo(), count_cpus()
    expected = _thumbnail(photo)
    began, cpu_began = time.perf_counter(), _cpu()
    sizes = await _WAYS[contender]([photo] * images, cores)
    took, cpu = time.perf_counter() - began, _cpu() - cpu_began
    if sizes != [expected] * images:
        raise RuntimeError(f"{images} images, {sizes.count(expected)} of them correct")
    return {"images/s": images / took, "% of all cores": cpu / took / cores * 100}


def _cpu() -> float:
    times = os.times()
    return times.user + times.system


def _missing(contender: str) -> str | None:
    return None if installed("pillow") else "needs python3 -m pip install 'asyncpool-toolkit[bench]'"


IMAGES = Question(
    name="images",
    asks="Does `offload` use all cores?",
    title="Images",
    cases=_cases,
    measure=_measure,
    more_is_better=True,
    missing=_missing,
    method="Pillow runs in as many threads as there are cores, so the highest possible ratio is the number of cores.",
)
