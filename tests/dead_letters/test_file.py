"""`DeadLetterFile`: what is written, and what is read again."""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncpool import DeadLetter, DeadLetterFile, Failed, PoolClosed, WorkerPool
from asyncpool.dead_letters.store import BATCH
from asyncpool.testing import run
from tests.dead_letters.tools import FakePool, fails, fill, jobs, letter, python, read
from tests.helpers import virtual

texts = st.text(st.characters(exclude_categories=[]), max_size=20) | st.text("a\n\0\u2028\ud83d\ude00", max_size=4)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(texts, children, max_size=3),
    max_leaves=8,
)
letters_of_json = st.builds(
    DeadLetter,
    job=json_values,
    error_type=texts,
    error=texts,
    attempts=st.integers(0),
    first_at=st.floats(allow_nan=False),
    last_at=st.floats(allow_nan=False),
    pool=texts,
)


def as_json_tells(letter: DeadLetter[Any]) -> DeadLetter[Any]:
    """JSON joins the halves of a surrogate pair that stood side by side in a str."""
    names = ("job", "error_type", "error", "attempts", "first_at", "last_at", "pool")
    fields = {name: getattr(letter, name) for name in names}
    try:
        str(fields).encode()
        json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        fields = json.loads(json.dumps(fields))
    return DeadLetter(**fields)


@settings(deadline=None)
@given(st.lists(letters_of_json, max_size=4))
def test_letters_come_back_from_the_file_as_they_were(letters: list[DeadLetter[Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "letters.jsonl")
        file = DeadLetterFile[Any](path)
        for one in letters:
            file.record(one)
        again = read(path)
        assert list(again) == [as_json_tells(one) for one in letters]
        assert len(again) == len(letters)
        assert again.skipped == 0
        if letters:
            lines = path.read_bytes().decode().split("\n")
            assert [len(json.loads(line)) for line in lines[:-1]] == [8] * len(letters)


def test_a_letter_is_one_line_of_readable_json(path: Path) -> None:
    DeadLetterFile[Any](path).record(letter({"to": "Jürgen"}, error="a\nb\0\u2028"))
    [line] = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    assert "Jürgen" in line
    fields = json.loads(line)
    assert fields.pop("id")
    assert fields == {
        "job": {"to": "Jürgen"},
        "error_type": "ValueError",
        "error": "a\nb\0\u2028",
        "attempts": 1,
        "first_at": 1.5,
        "last_at": 2.25,
        "pool": "p",
    }


def strict(line: str) -> Any:
    """Read JSON as other programs do: without the words that are none."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(line, parse_constant=refuse)


INFINITE = [
    math.inf,
    -math.inf,
    "Infinity",
    'a "quoted\\" NaN',
    {"NaN": [-math.inf, "\ud83d"]},
    {math.inf: 1},
    {"k": "é"},
]


def test_infinite_numbers_are_strict_json_and_come_back(path: Path) -> None:
    file = DeadLetterFile[Any](path)
    for job in INFINITE:
        file.record(letter(job))
    for line in path.read_text(encoding="utf-8").splitlines():
        strict(line)
    assert jobs(read(path)) == json.loads(json.dumps(INFINITE))


@pytest.mark.parametrize("job", [math.nan, [1, {"a": math.nan}], ("NaN", math.inf, math.nan)], ids=str)
def test_a_job_with_nan_cannot_be_written_and_its_letter_is_kept(
    path: Path, job: Any, caplog: pytest.LogCaptureFixture
) -> None:
    file = DeadLetterFile[Any](path)
    file.record(letter(job))
    assert strict(path.read_text(encoding="utf-8"))["job_repr"] == repr(job)
    assert jobs(file) == []
    assert [kept.job for kept in file.unreplayable()] == [repr(job)]
    [record] = caplog.records
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "JSON cannot represent NaN: pass encode= to write another value for it"


def test_a_line_with_nan_from_before_is_still_read(path: Path) -> None:
    fill(DeadLetterFile[Any](path), [7])
    path.write_text(path.read_text(encoding="utf-8").replace('"job": 7', '"job": [NaN, Infinity]'), encoding="utf-8")
    [[nan, infinite]] = jobs(read(path))
    assert math.isnan(nan)
    assert infinite == math.inf


@settings(deadline=None)
@given(st.recursive(st.floats() | texts, lambda children: st.lists(children, max_size=3), max_leaves=8))
def test_every_line_is_strict_json(job: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "letters.jsonl")
        DeadLetterFile[Any](path).record(letter(job))
        [line] = path.read_bytes().splitlines()
        fields = strict(line.decode())
        assert ("job" in fields) is ("nan" not in str(flat(job)))


def flat(job: Any) -> list[float]:
    if isinstance(job, list):
        return [number for item in job for number in flat(item)]
    return [job] if isinstance(job, float) else []


def test_jobs_go_through_encode_and_decode(path: Path) -> None:
    file = DeadLetterFile[complex](path, encode=lambda job: [job.real, job.imag], decode=lambda pair: complex(*pair))
    file.record(letter(1 + 2j))
    assert jobs(file) == [1 + 2j]
    assert jobs(read(path)) == [[1, 2]]


def test_a_missing_file_has_no_letters_and_is_made_by_the_first(path: Path) -> None:
    file = DeadLetterFile[Any](path)
    assert jobs(file) == []
    assert len(file) == 0
    assert run(lambda: file.replay(FakePool())) == 0
    file.compact()
    assert not path.exists()
    fill(file, [1])
    assert path.exists()
    assert jobs(file) == [1]


@pytest.mark.parametrize(
    ("where", "error"),
    [(".", IsADirectoryError), ("missing/letters", FileNotFoundError), ("file/letters", NotADirectoryError)],
)
def test_a_path_that_cannot_be_a_file_is_refused_at_once(tmp_path: Path, where: str, error: type[OSError]) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(error, match=str(tmp_path)):
        DeadLetterFile(tmp_path / where)


@pytest.mark.parametrize("name", ["encode", "decode"])
def test_encode_and_decode_must_be_callable(path: Path, name: str) -> None:
    options: dict[str, Any] = {name: 3}
    with pytest.raises(TypeError, match=f"{name} must be callable, got 3"):
        DeadLetterFile(path, **options)


def test_the_path_stays_the_same_when_the_program_changes_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = DeadLetterFile[Any]("letters.jsonl")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    fill(file, [1])
    assert jobs(read(tmp_path / "letters.jsonl")) == [1]
    assert repr(file) == f"<DeadLetterFile {str(tmp_path / 'letters.jsonl')!r}>"


def test_no_descriptor_is_kept_so_the_file_may_be_renamed(path: Path) -> None:
    file = fill(DeadLetterFile[Any](path), [1])
    path.rename(path.with_suffix(".old"))
    fill(file, [2])
    assert jobs(read(path)) == [2]
    assert jobs(read(path.with_suffix(".old"))) == [1]


def test_a_record_that_the_disk_refuses_raises_and_is_shown_all_the_same(path: Path) -> None:
    file = DeadLetterFile[Any](path)
    watch = file.watch()
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        fill(file, [1])
    assert run(lambda: anext(watch)).job == 1


@virtual
async def test_a_disk_that_refuses_costs_no_outcome(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = DeadLetterFile[Any](path)
    path.mkdir()
    async with WorkerPool(fails, workers=1, dead_letters=file) as pool:
        [outcome] = await pool.outcomes([1])
    assert isinstance(outcome, Failed)
    assert "IsADirectoryError" in caplog.text


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_raises() -> None:
    with pytest.raises(OSError, match="No space left"):
        fill(DeadLetterFile[Any]("/dev/full"), [1])


def test_iterating_gives_what_was_there_when_it_began_and_is_lazy(path: Path) -> None:
    file = fill(DeadLetterFile[Any](path), range(3))
    seen = []
    for kept in file:
        seen.append(kept.job)
        fill(file, [kept.job + 10])
    assert seen == [0, 1, 2]
    assert len(file) == 6


@pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")
def test_a_disk_that_fills_up_in_the_middle_of_a_line_raises_and_costs_one_letter(path: Path) -> None:
    code = """
import resource, signal, sys
from asyncpool import DeadLetter, DeadLetterFile

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
file = DeadLetterFile(sys.argv[1])
one = dict(error_type="E", error="no", attempts=1, first_at=0, last_at=0)
file.record(DeadLetter(job=1, **one))
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (file.path.stat().st_size + 50, most))
for job in (2, 3):
    try:
        file.record(DeadLetter(job=job, **one))
    except OSError as error:
        print(error.strerror)
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
file.record(DeadLetter(job=4, **one))
"""
    assert python(code, path).splitlines() == ["File too large"] * 2
    file = read(path)
    assert jobs(file) == [1, 4]
    assert file.skipped == 1


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
@virtual
async def test_a_replay_that_ended_early_has_closed_the_file(path: Path) -> None:
    file = fill(DeadLetterFile[Any](path), range(3 * BATCH))
    pool = FakePool()
    pool.close()
    with pytest.raises(PoolClosed) as caught:
        await file.replay(pool)
    opened = [os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]
    assert str(path) not in opened
    assert caught.tb is not None  # which keeps the frames, and would keep the file open
