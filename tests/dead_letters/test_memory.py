"""`DeadLetters`: the store in memory."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from asyncpool import DeadLetters
from tests.dead_letters.tools import fill, jobs, letter


def test_a_full_store_drops_its_oldest_and_never_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    letters = fill(DeadLetters(max_size=3), range(13))
    assert jobs(letters) == [10, 11, 12]
    assert (len(letters), letters.dropped) == (3, 10)
    told = [record for record in caplog.records if "its oldest is dropped" in record.message]
    assert [record.args[1] for record in told if isinstance(record.args, tuple)] == [1, 2, 4, 8]
    assert {record.levelno for record in told} == {logging.ERROR}


@pytest.mark.parametrize(("size", "error"), [(0, ValueError), (True, TypeError), (1.5, TypeError), (None, TypeError)])
def test_max_size_is_a_count(size: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="max_size must be"):
        DeadLetters(max_size=size)


def test_letters_are_found_by_a_predicate() -> None:
    letters = fill(DeadLetters(), range(5))
    assert [letter.job for letter in letters.find(lambda letter: letter.job % 2)] == [1, 3]


def test_a_letter_is_removed_by_identity() -> None:
    letters = fill(DeadLetters(), [1, 1])
    first, second = letters
    assert first == second
    assert letters.remove(second)
    assert not letters.remove(second)
    assert not letters.remove(letter(1))
    assert [kept is first for kept in letters] == [True]


def test_jobs_need_be_neither_hashable_nor_comparable() -> None:
    class Odd:
        __hash__ = None  # type: ignore[assignment]

        def __eq__(self, other: object) -> bool:
            raise TypeError

    letters = fill(DeadLetters(), [{}, Odd(), Odd()])
    assert letters.remove(list(letters)[1])
    assert len(letters) == 2


def test_a_store_may_change_while_it_is_iterated() -> None:
    letters = fill(DeadLetters(), range(3))
    for kept in letters:
        letters.remove(kept)
        letters.record(letter(kept.job + 10))
    assert jobs(letters) == [10, 11, 12]
    letters.clear()
    assert jobs(letters) == []
    assert repr(letters) == "<DeadLetters: 0 of at most 10000, 0 dropped>"
