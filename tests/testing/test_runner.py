"""What `run` promises."""

from __future__ import annotations

import asyncio
import gc
import warnings
from typing import Any

import pytest

from asyncpool.testing import LeakError, run, settle
from tests.testing.helpers import forever


def test_run_takes_a_coroutine_too() -> None:
    assert run(asyncio.sleep(3, "value")) == "value"


def test_run_fails_if_a_task_is_left_behind() -> None:
    async def main() -> None:
        task = asyncio.create_task(forever(), name="orphan")
        await settle()
        assert not task.done()

    with pytest.raises(LeakError, match=r"(?s)tasks left behind.*'orphan'.*in forever"):
        run(main)


def test_run_fails_if_a_task_left_behind_cannot_even_be_cancelled() -> None:
    async def stubborn() -> None:
        try:
            await forever()
        except asyncio.CancelledError:
            await forever()

    async def main() -> None:
        task = asyncio.create_task(stubborn(), name="stubborn")
        await settle()
        assert not task.done()

    with pytest.raises(LeakError, match="could not be cancelled: deadlock: nothing is ready"):
        run(main, patience=0.1)


def test_run_fails_if_an_exception_was_never_retrieved() -> None:
    async def broken() -> None:
        raise OSError("unseen")

    async def main() -> None:
        task = asyncio.create_task(broken())
        await settle()
        del task

    with pytest.raises(LeakError, match=r"never retrieved.*unseen") as caught:
        run(main)
    assert isinstance(caught.value.__cause__, OSError)


def test_run_finds_unretrieved_exceptions_in_cycles_if_it_collects() -> None:
    async def broken(itself: list[Any]) -> None:
        raise OSError("unseen")

    async def main() -> None:
        cycle: list[Any] = []
        cycle.append(cycle)
        cycle.append(asyncio.create_task(broken(cycle)))
        await settle()

    gc.disable()
    try:
        with pytest.raises(LeakError, match=r"never retrieved.*unseen"):
            run(main, collect=True)
    finally:
        gc.enable()


def test_run_fails_if_a_coroutine_was_never_awaited() -> None:
    async def main() -> None:
        _ = forever()

    with pytest.raises(LeakError, match="coroutine 'forever' was never awaited"):
        run(main)


def test_run_leaves_other_warnings_to_others() -> None:
    async def main() -> None:
        warnings.warn("old", DeprecationWarning, stacklevel=1)

    with pytest.warns(DeprecationWarning, match="old"):
        run(main)


def test_run_leaves_the_filters_of_warnings_as_they_were() -> None:
    async def main() -> None:
        warnings.warn("odd", RuntimeWarning, stacklevel=1)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning, match="odd"):
            run(main)


def test_the_error_of_main_wins_and_carries_the_leaks_as_notes() -> None:
    async def main() -> None:
        task = asyncio.create_task(forever(), name="orphan")
        await settle()
        raise ValueError(task.get_name())

    with pytest.raises(ValueError, match="orphan") as caught:
        run(main)
    assert "task 'orphan' waits at" in "\n".join(caught.value.__notes__)


def test_tasks_left_behind_are_cancelled_when_run_ends() -> None:
    ends: list[str] = []

    async def orphan() -> None:
        try:
            await forever()
        finally:
            ends.append("cancelled")

    async def main() -> None:
        task = asyncio.create_task(orphan())
        await settle()
        assert not task.done()

    with pytest.raises(LeakError):
        run(main)
    assert ends == ["cancelled"]


@pytest.mark.parametrize("debug", [True, False])
def test_run_sets_the_debug_mode(debug: bool) -> None:
    async def main() -> bool:
        return asyncio.get_running_loop().get_debug()

    assert run(main, debug=debug) is debug


def test_run_leaves_no_garbage() -> None:
    async def main() -> None:
        await asyncio.sleep(1)

    run(main)
    gc.collect()
    gc.disable()
    try:
        for _ in range(10):
            run(main, seed=1)
        assert gc.collect() == 0
    finally:
        gc.enable()
