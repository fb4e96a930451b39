"""`ImageService`: from a URL to a file, many at a time."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from PIL import Image

import asyncpool
from examples.image_service.errors import (
    BadUrl,
    DownloadFailed,
    ImageDamaged,
    ImageTooLarge,
    NotAnImage,
    OutputError,
)
from examples.image_service.service import ImageService, Photo, Source, Thumbnail

if TYPE_CHECKING:
    from conftest import Web

pytestmark = pytest.mark.asyncio


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


async def run(out: Path, *photos: Photo, **options: Any) -> list[Thumbnail]:
    """What one run of the service makes of the photos, in their order. Raises the first error."""
    async with ImageService(out, **options) as service:
        outcomes = await service.pool.outcomes(photos, ordered=True)
    return [outcome.unwrap() for outcome in outcomes]


def files(out: Path) -> set[str]:
    return set(os.listdir(out))


# -- one image --


async def test_a_photo_becomes_a_thumbnail_in_the_folder(site: Web, out: Path) -> None:
    [made] = await run(out, f"{site.base}/img001.jpg")

    assert made == Thumbnail(
        path=out / "img001.jpg",
        width=800,
        height=600,
        bytes_in=len(site.photo),
        bytes_out=(out / "img001.jpg").stat().st_size,
        skipped=False,
    )
    with Image.open(made.path) as image:
        assert (image.format, image.size) == ("JPEG", (800, 600))
    assert files(out) == {"img001.jpg"}


async def test_one_thumbnail_can_be_awaited(site: Web, out: Path) -> None:
    async with ImageService(out, size=(100, 100)) as service:
        made = await service.thumbnail(f"{site.base}/img001.jpg")

    assert (made.name, made.width, made.height) == ("img001", 100, 75)


async def test_awaiting_one_thumbnail_raises_why_there_is_none(site: Web, out: Path) -> None:
    site.serve("/text.jpg", b"text")
    async with ImageService(out) as service:
        with pytest.raises(NotAnImage):
            await service.thumbnail(f"{site.base}/text.jpg")


async def test_a_cancelled_request_cancels_its_download(site: Web, out: Path) -> None:
    arrived = asyncio.Event()

    async def reply(request: web.Request) -> web.StreamResponse:
        arrived.set()
        await site.never.wait()
        return web.Response()

    site.replies["/slow.jpg"] = reply
    async with ImageService(out) as service:
        task = asyncio.create_task(service.thumbnail(f"{site.base}/slow.jpg"))
        await arrived.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert service.pool.stats.running == 0
    assert files(out) == set()


async def test_a_closed_service_takes_no_more_photos(site: Web, out: Path) -> None:
    async with ImageService(out) as service:
        pass

    with pytest.raises(asyncpool.PoolClosed):
        await service.thumbnail(f"{site.base}/img001.jpg")


# -- many images --


async def test_no_more_images_are_under_way_than_there_are_workers(site: Web, out: Path) -> None:
    await run(out, *[f"{site.base}/img{number:03}.jpg" for number in range(30)], workers=3, size=(40, 40))

    assert len(site.requests) == 30
    assert site.peak <= 3


async def test_photos_are_pulled_only_as_they_are_needed(site: Web, out: Path) -> None:
    pulled = 0

    async def endless() -> AsyncIterator[str]:
        nonlocal pulled
        while True:
            pulled += 1
            yield f"{site.base}/img{pulled:03}.jpg"

    async with ImageService(out, workers=2, size=(40, 40)) as service, service.process(endless()) as outcomes:
        reader = aiter(outcomes)
        for _ in range(5):
            await anext(reader)
    assert pulled <= 5 + 2 * 2


async def test_each_kind_of_failure_costs_its_own_image_only(site: Web, out: Path, photo: bytes) -> None:
    wide = BytesIO()
    Image.new("RGB", (4001, 3)).save(wide, "JPEG")

    async def missing(request: web.Request) -> web.StreamResponse:
        raise web.HTTPNotFound

    site.replies["/missing.jpg"] = missing
    urls = [
        site.serve("/cut.jpg", photo[: len(photo) // 2]),
        site.serve("/text.jpg", b"This is text."),
        site.serve("/wide.jpg", wide.getvalue()),
        f"{site.base}/missing.jpg",
        "ftp://example.com/a.jpg",
        f"{site.base}/good.jpg",
    ]

    async with ImageService(out, max_width=4000) as service:
        outcomes = await service.pool.outcomes(urls, ordered=True)

    errors = [outcome.error for outcome in outcomes if isinstance(outcome, asyncpool.Failed)]
    assert [type(error) for error in errors] == [ImageDamaged, NotAnImage, ImageTooLarge, DownloadFailed, BadUrl]
    assert files(out) == {"good.jpg"}


async def test_leaving_the_service_by_an_exception_stops_at_once(site: Web, out: Path) -> None:
    async def reply(request: web.Request) -> web.StreamResponse:
        await site.never.wait()
        return web.Response()

    site.replies["/slow.jpg"] = reply

    service = ImageService(out, timeout=60)

    async def leave() -> None:
        async with service:
            await service.pool.submit(f"{site.base}/slow.jpg")
            raise LookupError

    with pytest.raises(LookupError):
        await leave()
    assert service.pool.report is not None
    assert [unfinished.job for unfinished in service.pool.report.unfinished] == [f"{site.base}/slow.jpg"]


# -- names --


@pytest.mark.parametrize(
    "path",
    [
        "/../../../../tmp/x.jpg",
        "/%2e%2e/%2e%2e/x.jpg",
        "/..%2f..%2f..%2fx.jpg",
        "/..%5c..%5cx.jpg",
        "/%2ftmp%2fx.jpg",
        "/a%00/../x.jpg",
        "/x.jpg/..",
        "/" + "x" * 3000 + ".jpg",
        "/NUL",
        "/",
    ],
)
async def test_nothing_is_written_outside_the_folder_whatever_the_url_says(
    site: Web, out: Path, tmp_path: Path, path: str
) -> None:
    [made] = await run(out, site.base + path)

    assert made.path.parent == out
    assert made.path.resolve() == made.path
    assert files(out) == {made.path.name}
    assert files(tmp_path) == {"out"}


async def test_a_link_in_the_folder_is_not_written_through(site: Web, out: Path, tmp_path: Path) -> None:
    out.mkdir()
    (tmp_path / "precious").write_bytes(b"precious")
    (out / "img001.jpg").symlink_to(tmp_path / "precious")

    [made] = await run(out, f"{site.base}/img001.jpg")

    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert made.name.startswith("img001-")


async def test_two_urls_of_one_name_get_two_files(site: Web, out: Path) -> None:
    urls = [f"{site.base}/{place}/photo.jpg" for place in ("a", "b", "c")]

    made = await run(out, *urls)

    assert len({thumbnail.path for thumbnail in made}) == 3
    assert len(files(out)) == 3
    assert "photo.jpg" in files(out)


async def test_names_that_differ_in_case_only_are_never_mixed_up(site: Web, out: Path) -> None:
    made = await run(out, f"{site.base}/IMG.jpg", f"{site.base}/img.jpg")
    again = await run(out, f"{site.base}/IMG.jpg", f"{site.base}/img.jpg")

    assert [thumbnail.path for thumbnail in again] == [thumbnail.path for thumbnail in made]
    assert all(thumbnail.skipped for thumbnail in again)


async def test_a_file_that_the_service_did_not_write_is_never_replaced(site: Web, out: Path, photo: bytes) -> None:
    out.mkdir()
    (out / "img001.jpg").write_bytes(photo)

    [made] = await run(out, f"{site.base}/img001.jpg")

    assert (out / "img001.jpg").read_bytes() == photo
    assert made.path != out / "img001.jpg"


async def test_an_image_all_of_whose_names_are_taken_fails_with_a_sentence(site: Web, out: Path) -> None:
    url = f"{site.base}/img001.jpg"
    [first] = await run(out, f"{site.base}/other/img001.jpg")
    [second] = await run(out, url)
    second.path.write_bytes(b"not ours")

    with pytest.raises(OutputError, match=rf"^cannot write {second.name}.jpg: the file exists and is not a thumbnail"):
        await run(out, url)
    assert second.path.read_bytes() == b"not ours"
    assert first.path.exists()


# -- reruns --


async def test_a_rerun_skips_what_is_there_and_asks_the_server_for_nothing(site: Web, out: Path) -> None:
    urls = [f"{site.base}/a/img.jpg", f"{site.base}/b/img.jpg"]
    first = await run(out, *urls)
    site.requests.clear()

    second = await run(out, *reversed(urls))

    assert [thumbnail.path for thumbnail in reversed(second)] == [thumbnail.path for thumbnail in first]
    assert all(thumbnail.skipped and thumbnail.bytes_in == 0 for thumbnail in second)
    assert [thumbnail.bytes_out for thumbnail in reversed(second)] == [thumbnail.bytes_out for thumbnail in first]
    assert site.requests == []


@pytest.mark.parametrize("changed", [{"size": (400, 300)}, {"size": (900, 600)}, {"quality": 50}])
async def test_a_rerun_with_other_settings_makes_the_image_anew_in_its_place(
    site: Web, out: Path, changed: dict[str, Any]
) -> None:
    url = f"{site.base}/img001.jpg"
    [first] = await run(out, url)

    [second] = await run(out, url, **changed)

    assert not second.skipped
    assert second.path == first.path
    assert files(out) == {"img001.jpg"}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def empty(path: Path) -> None:
    path.unlink()


def flip_a_bit(path: Path) -> None:
    """In the middle of the picture, where Pillow still decodes the file without an error."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with Image.open(path) as image:
        image.load()


def zero_the_tail(path: Path) -> None:
    """As after a power failure on some file systems."""
    data = path.read_bytes()
    path.write_bytes(data[:-4096] + bytes(4094) + data[-2:])


@pytest.mark.parametrize("damage", [cut, empty, flip_a_bit, zero_the_tail])
async def test_a_rerun_makes_anew_what_is_no_longer_whole(site: Web, out: Path, damage: Callable[[Path], None]) -> None:
    url = f"{site.base}/img001.jpg"
    [first] = await run(out, url)
    whole = first.path.read_bytes()
    damage(first.path)

    [second] = await run(out, url)

    assert not second.skipped
    assert first.path.read_bytes() == whole


async def test_a_thumbnail_of_an_earlier_version_without_a_checksum_is_made_anew_in_its_place(
    site: Web, out: Path
) -> None:
    url = f"{site.base}/img001.jpg"
    [first] = await run(out, url)
    with Image.open(first.path) as image:
        comment = image.info["comment"]
        image.save(first.path, comment=comment.partition(b", checksum")[0])

    [second] = await run(out, url)

    assert not second.skipped
    assert files(out) == {"img001.jpg"}


async def test_a_source_is_known_by_its_origin_and_not_by_its_url(site: Web, out: Path) -> None:
    await run(out, Source(url=f"{site.base}/1/img001.jpg", origin="disk: img001"))

    [second] = await run(out, Source(url=f"{site.base}/2/img001.jpg", origin="disk: img001"))

    assert second.skipped


async def test_neither_a_source_nor_its_job_shows_a_password() -> None:
    source = Source(url="https://user:SECRET@example.com/a.jpg?SECRET", origin="SECRET")

    assert repr(source) == "Source(revision='', label='https://example.com/a.jpg?...')"


async def test_another_revision_replaces_the_old_one(site: Web, out: Path) -> None:
    url = f"{site.base}/img001.jpg"
    [first] = await run(out, Source(url=url, origin="a", revision="1"))

    [second] = await run(out, Source(url=url, origin="a", revision="2"))

    assert not second.skipped
    assert second.path == first.path


async def test_the_same_photo_asked_for_twice_at_once_is_downloaded_once(site: Web, out: Path) -> None:
    url = f"{site.base}/img001.jpg"

    async with ImageService(out) as service:
        made = await asyncio.gather(*(service.thumbnail(url) for _ in range(5)))

    assert len(site.requests) == 1
    assert [thumbnail.skipped for thumbnail in made].count(False) == 1
    assert files(out) == {"img001.jpg"}


async def test_the_address_of_a_photo_cannot_be_read_in_its_thumbnail(site: Web, out: Path) -> None:
    [made] = await run(out, f"{site.base}/img001.jpg?token=secret")

    data = made.path.read_bytes()
    assert b"secret" not in data
    assert b"127.0.0.1" not in data


# -- the folder --


async def test_the_folder_is_made_if_it_is_missing(site: Web, tmp_path: Path) -> None:
    await run(tmp_path / "a" / "b", f"{site.base}/img001.jpg")

    assert files(tmp_path / "a" / "b") == {"img001.jpg"}


async def test_a_folder_that_cannot_be_made_is_told_before_anything_is_downloaded(site: Web, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(OutputError, match=r"file is a file, not a folder$"):
        await run(tmp_path / "file", f"{site.base}/img001.jpg")
    assert site.requests == []


async def test_what_a_killed_run_left_half_written_is_removed(site: Web, out: Path) -> None:
    out.mkdir()
    (out / f".image-service-{os.getpid()}-0123abcd-1.part").write_bytes(b"half")

    await run(out, f"{site.base}/img001.jpg")

    assert files(out) == {"img001.jpg"}


async def test_a_disk_that_takes_no_more_fails_the_image_with_a_sentence(
    site: Web, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    async with ImageService(out) as service:
        monkeypatch.setattr(os, "fsync", no_space)
        with pytest.raises(OutputError, match=r"^cannot write img001.jpg: No space left on device$"):
            await service.thumbnail(f"{site.base}/img001.jpg")
    assert files(out) == set()


# -- the arguments --


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"workers": 0}, "workers must be >= 1, got 0"),
        ({"size": (0, 0)}, "size must be"),
        ({"quality": 0}, "quality must be"),
        ({"timeout": 0}, "timeout must be > 0"),
        ({"max_bytes": 0}, "max_bytes must be >= 1"),
    ],
)
async def test_arguments_that_make_no_sense_are_refused_at_once(out: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ImageService(out, **options)
