"""`VirtualTimeLoop` as the loop of others: asyncio's runner, and plugins of pytest."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

import asyncpool
from asyncpool.testing import VirtualTimeLoop
from tests.testing.helpers import now


def test_asyncio_run_takes_the_loop_as_a_factory() -> None:
    async def main() -> float:
        await asyncio.sleep(100)
        return now()

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        assert runner.run(main()) == 100.0
    if sys.version_info >= (3, 12):
        assert asyncio.run(main(), loop_factory=VirtualTimeLoop) == 100.0


def run_pytest(folder: Path, conftest: str, test: str, ini: str, *options: str) -> str:
    (folder / "conftest.py").write_text(conftest)
    (folder / "test_it.py").write_text(test)
    (folder / "pytest.ini").write_text(f"[pytest]\nfilterwarnings = error\n{ini}\n")
    root = Path(asyncpool.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


def test_pytest_asyncio_runs_tests_on_virtual_time(tmp_path: Path) -> None:
    pytest.importorskip("pytest_asyncio")
    conftest = """
from asyncpool.testing import VirtualTimeLoop
def pytest_asyncio_loop_factories(config, item):
    return {"virtual": VirtualTimeLoop}
"""
    test = """
import asyncio, pytest
from asyncpool.testing import VirtualTimeLoop
@pytest.mark.asyncio
async def test_sleep():
    await asyncio.to_thread(int)
    await asyncio.sleep(86400)
    assert isinstance(asyncio.get_running_loop(), VirtualTimeLoop)
"""
    assert "1 passed" in run_pytest(tmp_path, conftest, test, "asyncio_default_fixture_loop_scope = function")


def test_the_pytest_plugin_of_anyio_runs_tests_and_fixtures_on_virtual_time(tmp_path: Path) -> None:
    conftest = """
import anyio, pytest
from asyncpool.testing import VirtualTimeLoop
@pytest.fixture
def anyio_backend():
    return "asyncio", {"loop_factory": VirtualTimeLoop}
@pytest.fixture
async def slow(anyio_backend):
    await anyio.sleep(3600)
    yield anyio.current_time()
    await anyio.sleep(3600)
"""
    test = """
import anyio, pytest
@pytest.mark.anyio
async def test_sleep(slow):
    await anyio.to_thread.run_sync(int)
    await anyio.sleep(3600)
    assert (slow, anyio.current_time()) == (3600.0, 7200.0)
"""
    assert "1 passed" in run_pytest(tmp_path, conftest, test, "", "-p", "no:asyncio")
