"""The demo's photos are as photos are, and the same every time."""

from __future__ import annotations

from io import BytesIO
from random import Random

import pytest
from PIL import Image, ImageChops

from examples.demo_photos.photos import paint_photo, paint_wide_photo
from examples.demo_photos.scenes import SCENES, Scene
from examples.image_service.images import Recipe, make_thumbnail


def test_a_photo_has_megapixels_and_megabytes() -> None:
    data = paint_photo(4)

    with Image.open(BytesIO(data)) as image:
        assert 4e6 <= image.width * image.height <= 12e6
        assert len(data) > image.width * image.height / 6


def test_the_same_number_gives_the_same_photo() -> None:
    assert paint_photo(1) == paint_photo(1)


def test_a_photo_taken_with_the_camera_on_its_side_is_stored_like_that() -> None:
    data = paint_photo(3)
    with Image.open(BytesIO(data)) as image:
        assert image.width > image.height
    made = make_thumbnail(BytesIO(data), Recipe())
    assert made.width < made.height


def test_the_wide_photo_is_wider_than_the_demo_allows() -> None:
    with Image.open(BytesIO(paint_wide_photo())) as image:
        assert image.width > 4000


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
def test_a_scene_is_another_in_each_mood_and_never_flat(scene: Scene) -> None:
    one, other = (scene(Random(1), (240, 180), mood) for mood in (0, 1))

    assert one.size == other.size == (240, 180)
    assert one.mode == "RGB"
    assert max(high - low for low, high in one.getextrema()) > 100  # type: ignore[operator]
    assert ImageChops.difference(one, other).getbbox() is not None
