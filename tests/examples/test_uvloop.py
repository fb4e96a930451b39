"""The examples run on uvloop, too: each with a small load, in its own process.

The three larger ones have tests of their own for it. Those of common_mistakes.py need the loop of `asyncpool.testing`,
uvicorn chooses uvloop itself (test_asgi_service.py), cluster.py runs crunch.py, and private_postgres.py is a part of
postgres_jobs.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.programs import Programs
from tests.servers.postgres import find_programs

pytest.importorskip("uvloop")

PROGRAM = """
import asyncio, runpy, sys, uvloop

class Policy(uvloop.EventLoopPolicy):
    def new_event_loop(self):
        print("on uvloop", flush=True)
        return super().new_event_loop()

asyncio.set_event_loop_policy(Policy())
sys.argv.pop(0)
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
EXAMPLES = {
    "adaptive_crawl": ["--seconds", "0.6", "--pages", "40"],
    "auto_scaling": ["--jobs", "20", "--job-time", "0.01", "--idle-timeout", "0.1"],
    "basic_pool": [],
    "best_practices": [],
    "command_engine": [],
    "crunch": ["--upto", "4000", "--engine", "none"],
    "llm_batch": ["--prompts", "20", "--speed", "60"],
    "naive_gather": ["--jobs", "50", "--workers", "10"],
    "postgres_jobs": ["--add", "50"],
    "retries_and_dead_letters": [],
}


@pytest.fixture(scope="module")
def programs() -> Iterator[Programs]:
    programs = Programs()
    yield programs
    programs.close()


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_runs_on_uvloop(example: str, programs: Programs, tmp_path: Path) -> None:
    if example == "postgres_jobs" and find_programs() is None:
        pytest.skip("needs PostgreSQL (Debian: apt install postgresql)")
    (tmp_path / "program.py").write_text(PROGRAM)
    ran = programs.run(["program.py", f"examples.{example}", *EXAMPLES[example]], tmp_path)
    assert ran.status == 0, ran.output
    assert "on uvloop" in ran.output
    assert not re.search("Traceback|Exception ignored|Warning:", ran.output), ran.output


def test_all_examples_of_one_file_are_tested() -> None:
    folder = Path(__file__).parents[2] / "examples"
    commands = {file.stem for file in folder.glob("*.py") if '__name__ == "__main__"' in file.read_text()}
    others = {"asgi_service", "cluster", "common_mistakes", "private_postgres", "prometheus_check"}
    assert commands == {*EXAMPLES, *others}
