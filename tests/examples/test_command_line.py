"""How the commands of the examples exit if their output cannot be written. The rest is tested with each command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GIVE_UP = 60.0

PROGRAMS = {
    "finish": (
        "import sys; from examples.command_line import finish\n"
        "async def main(): print('one line')\n"
        "sys.exit(finish('program', main, lambda: 'nothing was done'))"
    ),
    "finish_plain": (
        "import sys; from examples.command_line import finish_plain\n"
        "sys.exit(finish_plain('program', lambda: print('one line')))"
    ),
    "task group": (
        "import asyncio, sys; from examples.command_line import finish\n"
        "async def line(): print('one line', flush=True)\n"
        "async def main():\n"
        "    async with asyncio.TaskGroup() as outer, asyncio.TaskGroup() as group:\n"
        "        outer.create_task(line())\n"
        "        group.create_task(line())\n"
        "sys.exit(finish('program', main, lambda: 'nothing was done'))"
    ),
    "task group in finish_plain": (
        "import asyncio, sys; from examples.command_line import finish_plain\n"
        "async def line(): print('one line', flush=True)\n"
        "async def main():\n"
        "    async with asyncio.TaskGroup() as group: group.create_task(line())\n"
        "sys.exit(finish_plain('program', lambda: asyncio.run(main())))"
    ),
}


def started(program: str, **options: int) -> subprocess.Popen[str]:
    # Python buffers its output until there is much of it, or until it exits.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-W", "error", "-c", program]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_when_nobody_reads_the_last_line_it_ends_in_silence(program: str) -> None:
    process = started(program, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    _, errors = process.communicate(timeout=GIVE_UP)

    assert (process.returncode, errors) == (1, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_when_the_last_line_cannot_be_written_it_ends_in_a_sentence(program: str) -> None:
    with open("/dev/full", "w") as full:
        process = started(program, stdout=full.fileno())
        _, errors = process.communicate(timeout=GIVE_UP)

    assert (process.returncode, errors) == (1, "program: error: [Errno 28] No space left on device\n")


def test_ctrl_c_ends_a_plain_program_in_a_word() -> None:
    program = (
        "import sys; from threading import Event; from examples.command_line import finish_plain\n"
        "sys.exit(finish_plain('program', lambda: print('begun', flush=True) or Event().wait()))"
    )
    process = started(program, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=GIVE_UP)

    assert (process.returncode, errors) == (130, "Interrupted.\n")


@pytest.mark.parametrize("example", ["basic_pool", "retries_and_dead_letters"])
def test_ctrl_c_ends_a_minimal_example_in_a_word(example: str) -> None:
    process = started(
        f"import runpy; runpy.run_module('examples.{example}', run_name='__main__')", stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=GIVE_UP)

    assert (process.returncode, errors) == (130, "Interrupted.\n")
