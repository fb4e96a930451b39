"""Files are written whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from examples.image_service.files import staged, sweep, write_whole


def test_a_written_file_holds_the_data_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    write_whole(tmp_path / "a.jpg", b"data")

    assert (tmp_path / "a.jpg").read_bytes() == b"data"
    assert os.listdir(tmp_path) == ["a.jpg"]


def test_the_old_file_stays_until_the_new_one_is_on_the_disk(tmp_path: Path) -> None:
    target = tmp_path / "a.jpg"
    target.write_bytes(b"old")

    with staged(tmp_path, b"new") as temporary:
        assert temporary.read_bytes() == b"new"
        assert target.read_bytes() == b"old"
        os.replace(temporary, target)

    assert target.read_bytes() == b"new"


def test_what_is_staged_and_not_moved_is_removed(tmp_path: Path) -> None:
    with staged(tmp_path, b"data"):
        pass

    assert os.listdir(tmp_path) == []


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").mkdir()

    with pytest.raises(IsADirectoryError):
        write_whole(tmp_path / "a.jpg", b"data")

    assert os.listdir(tmp_path) == ["a.jpg"]


def test_a_file_is_readable_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_whole(tmp_path / "a.jpg", b"data")
    finally:
        os.umask(before)

    assert (tmp_path / "a.jpg").stat().st_mode & 0o777 == 0o644


def test_the_sweep_removes_what_a_dead_process_left(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / f".image-service-{dead.pid}-0123abcd-7.part").write_bytes(b"half")

    sweep(tmp_path)

    assert os.listdir(tmp_path) == []


def test_the_sweep_removes_what_an_earlier_process_of_the_same_number_left(tmp_path: Path) -> None:
    (tmp_path / f".image-service-{os.getpid()}-0123abcd-7.part").write_bytes(b"half")

    sweep(tmp_path)

    assert os.listdir(tmp_path) == []


def test_the_sweep_spares_what_is_being_written(tmp_path: Path) -> None:
    with staged(tmp_path, b"data") as temporary:
        (theirs := tmp_path / f".image-service-{os.getppid()}-0123abcd-7.part").write_bytes(b"half")

        sweep(tmp_path)

        assert temporary.exists()
        assert theirs.exists()


def test_the_sweep_spares_files_of_others(tmp_path: Path) -> None:
    names = {".hidden", "notes.part", ".image-service-1.part", "img001.jpg"}
    for name in names:
        (tmp_path / name).touch()

    sweep(tmp_path)

    assert set(os.listdir(tmp_path)) == names
