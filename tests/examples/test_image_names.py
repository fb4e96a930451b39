"""What file name the image service makes out of a URL, and what it prints of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.image_service.names import shown_url, stem_of


@pytest.mark.parametrize(
    ("url", "stem"),
    [
        ("https://example.com/a/img001.jpg", "img001"),
        ("https://example.com/my%20photo.PNG?v=2#top", "my_photo"),
        ("https://example.com/_DSC0001.JPG", "_DSC0001"),
        ("https://example.com/Stra%C3%9Fe.webp", "Straße"),
        ("https://example.com/%E0%A4%B9%E0%A4%BF%E0%A4%A8.jpg", "हिन"),
        ("https://example.com/photo.php", "photo.php"),
        ("https://example.com/album/", "album"),
    ],
)
def test_the_name_is_the_last_part_of_the_path(url: str, stem: str) -> None:
    assert stem_of(url) == stem


@pytest.mark.parametrize(
    ("url", "stem"),
    [
        ("https://example.com/../../etc/passwd", "passwd"),
        ("https://example.com/..", "image"),
        ("https://example.com/%2e%2e", "image"),
        ("https://example.com/%2e%2e%2f%2e%2e%2fetc%2fpasswd", "passwd"),
        ("https://example.com/%252e%252e%252fetc", "_2e_2e_2fetc"),
        ("https://example.com//etc/passwd", "passwd"),
        ("https://example.com/..%5c..%5cwindows%5csystem.ini", "system.ini"),
        ("https://example.com/c:%5cautoexec.bat", "autoexec.bat"),
        ("https://example.com/a%00b.jpg", "a_b"),
        ("https://example.com/.bashrc", "bashrc"),
        ("https://example.com/-rf.jpg", "rf"),
        ("https://example.com/%1b%5d0;owned%07.jpg", "_0_owned_"),
        ("https://example.com/%e2%80%aegpj.exe.jpg", "_gpj.exe"),
        ("https://example.com/CON.jpg", "_CON"),
        ("https://example.com/lpt1.tar.jpg", "_lpt1.tar"),
        ("https://example.com/", "image"),
        ("https://example.com", "image"),
        ("http://[::1", "_1"),
        ("", "image"),
    ],
)
def test_a_hostile_url_gets_a_harmless_name(url: str, stem: str) -> None:
    assert stem_of(url) == stem


def test_a_name_is_short_enough_for_any_file_system_and_cut_between_characters() -> None:
    stem = stem_of("https://example.com/" + "%C3%BC" * 400 + ".jpg")

    assert stem == "ü" * 50


@given(st.text() | st.text("./\\%2eE5cC0\x00:-_ ~").map("https://example.com/".__add__))
def test_any_text_gives_a_name_that_stays_in_its_folder(url: str) -> None:
    stem = stem_of(url)

    assert Path("/folder", f"{stem}.jpg").resolve() == Path("/folder") / f"{stem}.jpg"
    assert not stem.startswith((".", "-"))
    assert 0 < len(stem.encode()) <= 101


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://example.com/a/img001.jpg", "https://example.com/a/img001.jpg"),
        ("https://user:SECRET@example.com:8080/a.jpg", "https://example.com:8080/a.jpg"),
        ("https://SECRET@example.com/a@2x.jpg?token=SECRET", "https://example.com/a@2x.jpg?..."),
        ("https://user:SECRET@[::1]/a.jpg#SECRET", "https://[::1]/a.jpg"),
        ("https://example.com/a.jpg#SECRET?SECRET", "https://example.com/a.jpg"),
        ("https://user:SECRET/SECRET@example.com/a.jpg", "example.com/a.jpg"),
        ("https://user:SECRET@SECRET@example.com/a.jpg", "https://example.com/a.jpg"),
        ("https://user:SECRET@[::1/a.jpg", "[::1/a.jpg"),
        ("https://user:SECRET@example.com:port/a.jpg", "example.com:port/a.jpg"),
        ("user:SECRET@example.com/a.jpg", "example.com/a.jpg"),
        ("nonsense", "nonsense"),
    ],
)
def test_of_a_url_only_what_is_no_secret_is_shown(url: str, shown: str) -> None:
    assert shown_url(url) == shown


@given(st.text(min_size=1))
def test_a_query_is_never_shown(text: str) -> None:
    assert shown_url(f"https://example.com/a?{text}").startswith("https://example.com/a")
    assert len(shown_url(f"https://example.com/a?{text}")) <= len("https://example.com/a?...")
