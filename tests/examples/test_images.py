"""A photo's bytes to a thumbnail's bytes."""

from __future__ import annotations

import contextlib
import struct
import zlib
from io import BytesIO
from random import Random
from typing import Any

import pytest
from PIL import Image, ImageCms

from examples.image_service.errors import ImageDamaged, ImageTooLarge, NotAnImage
from examples.image_service.images import Recipe, make_thumbnail

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encode(image: Image.Image, kind: str, **options: Any) -> BytesIO:
    target = BytesIO()
    image.save(target, kind, **options)
    target.seek(0)
    return target


def thumbnail(photo: BytesIO, **recipe: Any) -> Image.Image:
    made = make_thumbnail(photo, Recipe(**recipe))
    image = Image.open(BytesIO(made.data))
    assert image.format == "JPEG"
    assert image.mode == "RGB"
    assert image.size == (made.width, made.height)
    return image


def is_near(one: Any, other: Any, by: int = 12) -> bool:
    return all(abs(a - b) <= by for a, b in zip(one, other, strict=True))


def png_of(width: int, height: int) -> BytesIO:
    """A PNG whose header says this size, and which has no pixels at all."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"")
    chunks = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (header, data, b"IEND")]
    return BytesIO(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


# -- size --


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1600, 1200), (800, 600)),
        ((1600, 400), (800, 200)),
        ((300, 1200), (150, 600)),
        ((640, 480), (640, 480)),
        ((3000, 2), (800, 1)),
        ((2, 3000), (1, 600)),
    ],
)
def test_it_fits_the_box_in_the_same_proportions_and_is_never_enlarged(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert thumbnail(encode(Image.new("RGB", size), "JPEG")).size == expected


def test_a_photo_wider_than_allowed_is_refused_in_the_words_of_the_rule() -> None:
    with pytest.raises(ImageTooLarge, match=r"^image too large: max width is 4000px$"):
        make_thumbnail(encode(Image.new("RGB", (4001, 10)), "JPEG"), Recipe(max_width=4000))


def test_a_photo_just_as_wide_as_allowed_is_taken() -> None:
    assert thumbnail(encode(Image.new("RGB", (4000, 10)), "JPEG"), max_width=4000).size == (800, 2)


def test_a_photo_on_its_side_is_as_wide_as_one_sees_it() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6

    assert thumbnail(encode(Image.new("RGB", (4001, 2000)), "JPEG", exif=exif), max_width=4000).size == (300, 600)


@pytest.mark.parametrize("size", [(100, 600_000), (4000, 60_000)])
def test_too_many_pixels_are_refused_by_the_header_alone(size: tuple[int, int]) -> None:
    with pytest.raises(ImageTooLarge, match="image too large: "):
        make_thumbnail(png_of(*size), Recipe())


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_of_the_right_width_is_refused() -> None:
    with pytest.raises(ImageTooLarge, match="max is 50 megapixels"):
        make_thumbnail(png_of(4000, 25_000), Recipe())


# -- orientation --

METHODS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,  # how it must have been stored, to be seen upright when turned back
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", METHODS)
def test_a_photo_is_seen_upright_however_it_is_stored(kind: str, orientation: int) -> None:
    seen = Image.new("RGB", (1600, 800), WHITE)
    seen.paste(RED, (0, 0, 800, 400))
    seen.paste(BLUE, (800, 400, 1600, 800))
    method = METHODS[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = encode(seen if method is None else seen.transpose(method), kind, exif=exif)

    image = thumbnail(stored, size=(400, 400))

    assert image.size == (400, 200)
    assert is_near(image.getpixel((100, 50)), RED)
    assert is_near(image.getpixel((300, 150)), BLUE)
    assert is_near(image.getpixel((300, 50)), WHITE)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_broken_exif_block_is_no_reason_to_refuse_a_photo() -> None:
    photo = encode(Image.new("RGB", (160, 80), RED), "JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xffgarbage")

    assert thumbnail(photo).size == (160, 80)


@pytest.mark.parametrize("orientation", [0, 9, 65_535])
def test_an_orientation_that_does_not_exist_is_ignored(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation

    assert thumbnail(encode(Image.new("RGB", (160, 80)), "JPEG", exif=exif)).size == (160, 80)


# -- modes --


@pytest.mark.parametrize(
    ("mode", "kind", "color", "expected"),
    [
        ("RGB", "JPEG", RED, RED),
        ("L", "JPEG", 128, (128, 128, 128)),
        ("CMYK", "JPEG", (0, 255, 255, 0), RED),
        ("1", "PNG", 1, WHITE),
        ("LA", "PNG", (0, 128), (127, 127, 127)),
        ("RGBA", "PNG", (255, 0, 0, 255), RED),
        ("RGBA", "PNG", (255, 0, 0, 0), WHITE),
        ("RGBA", "WEBP", (0, 0, 255, 255), BLUE),
        ("I;16", "PNG", 0x8000, (128, 128, 128)),
        ("I;16", "TIFF", 0xFFFF, WHITE),
        ("CMYK", "TIFF", (255, 255, 0, 0), BLUE),
    ],
)
def test_every_mode_becomes_rgb(mode: str, kind: str, color: Any, expected: Any) -> None:
    image = thumbnail(encode(Image.new(mode, (1000, 1000), color), kind), size=(100, 100))

    assert is_near(image.getpixel((50, 50)), expected)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP"])
def test_a_palette_is_resolved_before_colors_are_averaged(kind: str) -> None:
    stripes = Image.new("P", (1000, 1000))
    stripes.putpalette([0, 0, 0, 255, 255, 255, 255, 0, 0])
    for x in range(0, 1000, 2):
        stripes.paste(1, (x, 0, x + 1, 1000))

    image = thumbnail(encode(stripes, kind), size=(100, 100))

    assert is_near(image.getpixel((50, 50)), (127, 127, 127))


def test_a_transparent_palette_color_is_seen_on_white() -> None:
    palette = Image.new("P", (200, 200), 1)
    palette.putpalette([0, 0, 0, 0, 0, 0])

    assert is_near(thumbnail(encode(palette, "PNG", transparency=1)).getpixel((50, 50)), WHITE)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_grays_without_a_fixed_range_are_spread_from_black_to_white(mode: str) -> None:
    image = Image.new(mode, (200, 100), -5)
    image.paste(100_000, (100, 0, 200, 100))

    made = thumbnail(encode(image, "TIFF"))

    assert is_near(made.getpixel((10, 50)), (0, 0, 0))
    assert is_near(made.getpixel((190, 50)), WHITE)


def test_the_first_picture_of_an_animation_is_taken() -> None:
    frames = [Image.new("RGB", (50, 50), color) for color in (RED, GREEN, BLUE)]

    image = thumbnail(encode(frames[0], "GIF", save_all=True, append_images=frames[1:]))

    assert is_near(image.getpixel((25, 25)), RED)


# -- what is passed on --


def test_the_color_profile_of_an_rgb_photo_is_kept() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()

    image = thumbnail(encode(Image.new("RGB", (100, 100)), "JPEG", icc_profile=profile))

    assert image.info["icc_profile"] == profile


@pytest.mark.parametrize(("kind", "size"), [("JPEG", 600_000), ("PNG", 900_000), ("TIFF", 20_000_000)])
def test_a_color_profile_larger_than_the_thumbnail_is_not_passed_on(kind: str, size: int) -> None:
    photo = encode(Image.new("RGB", (100, 100)), kind, icc_profile=bytes(size))

    assert len(make_thumbnail(photo, Recipe()).data) < 2000


def test_where_a_photo_was_taken_is_not_passed_on() -> None:
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    exif.get_ifd(0x8825)[1] = "N"

    assert not thumbnail(encode(Image.new("RGB", (100, 100)), "JPEG", exif=exif)).getexif()


def test_the_comment_is_written() -> None:
    made = make_thumbnail(encode(Image.new("RGB", (10, 10)), "PNG"), Recipe(), b"a stamp")

    assert Image.open(BytesIO(made.data)).info["comment"] == b"a stamp"


def test_a_lower_quality_makes_a_smaller_file(photo: bytes) -> None:
    best = make_thumbnail(BytesIO(photo), Recipe(quality=90))
    worst = make_thumbnail(BytesIO(photo), Recipe(quality=30))

    assert len(worst.data) < len(best.data) / 2


# -- what is no photo --


@pytest.mark.parametrize("data", [b"", b"\xff", b"<html>no</html>", b"%!PS-Adobe-3.0 EPSF-3.0\n", bytes(1000)])
def test_other_bytes_are_not_an_image(data: bytes) -> None:
    with pytest.raises(NotAnImage, match=r"^not an image: "):
        make_thumbnail(BytesIO(data), Recipe())


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.99])
def test_a_truncated_jpeg_is_refused(photo: bytes, share: float) -> None:
    with pytest.raises(ImageDamaged, match=r"^image damaged: the file is truncated$"):
        make_thumbnail(BytesIO(photo[: int(len(photo) * share)]), Recipe())


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "GIF", "BMP"])
def test_a_truncated_file_of_any_kind_is_refused(photo: bytes, kind: str) -> None:
    whole = encode(Image.open(BytesIO(photo)), kind).getvalue()

    with pytest.raises((ImageDamaged, NotAnImage)):
        make_thumbnail(BytesIO(whole[: len(whole) // 2]), Recipe())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"])
def test_flipped_bits_give_a_picture_or_a_sentence_and_never_anything_else(kind: str) -> None:
    rng = Random(kind)
    whole = encode(Image.effect_noise((64, 48), 80).convert("RGB"), kind).getvalue()
    for _ in range(150):
        broken = bytearray(whole)
        for _ in range(rng.randint(1, 8)):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        with contextlib.suppress(NotAnImage, ImageDamaged, ImageTooLarge):
            make_thumbnail(BytesIO(broken), Recipe(size=(32, 32)))


# -- recipes --


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"size": (0, 600)}, "size must be between 1x1 and 65500x65500, got 0x600"),
        ({"size": (800, 70_000)}, "size must be between"),
        ({"quality": 0}, "quality must be between 1 and 100, got 0"),
        ({"quality": 101}, "quality must be between 1 and 100, got 101"),
        ({"max_width": 0}, "max_width must be >= 1, got 0"),
        ({"max_pixels": 0}, "max_pixels must be >= 1, got 0"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Recipe(**options)
