"""The shape of the package: nothing too large to read, and no module that reaches into the private parts of another.

The floors are checked by import-linter (`make check`), the map by tests/test_documents.py.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import asyncpool

PACKAGE = Path(asyncpool.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
OUTSIDE_CORE = [file for file in FILES if "_core" not in file.parts]


def name_of(file: Path) -> str:
    return file.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_a_file_has_at_most_500_lines_and_the_hot_path_400(file: Path) -> None:
    most = 400 if name_of(file) == "_core/dispatch.py" else 500
    assert len(file.read_text(encoding="utf-8").splitlines()) <= most


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_a_class_has_at_most_40_methods(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef):
            methods = [item for item in node.body if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)]
            assert len(methods) <= 40, node.name


def reaches(source: str) -> list[str]:
    """The private attributes of other objects that a module uses."""
    return [
        f"line {node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.endswith("__")
        and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
        and not (isinstance(node.value, ast.Call) and ast.unparse(node.value) == "super()")
    ]


@pytest.mark.parametrize("file", OUTSIDE_CORE, ids=name_of)
def test_no_module_outside_the_core_reaches_into_another_object(file: Path) -> None:
    # Of the same module is fine: a class and its helper. So are the names that the standard library gave its own.
    source = file.read_text(encoding="utf-8")
    theirs = {"_get_running_loop", "_current_frames", "_exit"}
    found = [text for text in reaches(source) if text.rsplit(".", 1)[1] not in defined_in(source) | theirs]
    assert found == []


def defined_in(source: str) -> set[str]:
    """The names of the functions and attributes that a module defines."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
    return names


def test_reaching_is_found() -> None:
    assert reaches("def f(pool):\n    return pool._parts.queue") == ["line 2: pool._parts"]
    assert reaches("class A:\n    def f(self):\n        return self._own, super()._own") == []


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_no_two_callbacks_share_a_context(file: Path) -> None:
    # A handler can run the loop itself, in a callback of ours, and another cannot enter the same context meanwhile
    # (test_a_handler_can_run_the_loop_in_its_first_step).
    assert not re.search(r"context=self\._context\b(?!\.copy\(\))", file.read_text(encoding="utf-8"))


# Those that only a task calls, or that make a lock, for which anyio needs no task.
NOT_FOR_TIMERS = {"dask/session.py": {"__init__", "_use"}, "dashboard/reading.py": {"__init__"}}


def calls_of_anyio_without_a_task(source: str) -> dict[str, list[str]]:
    """The functions that are not async, and what they call of anyio."""
    found: dict[str, list[str]] = {}
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef):
            for node in ast.walk(function):
                name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
                if name.startswith("anyio.") or name.endswith(".start_soon"):
                    found.setdefault(function.name, []).append(name)
    return found


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_what_a_timer_can_call_uses_no_function_of_anyio(file: Path) -> None:
    # Where sniffio is installed, they raise outside of a task (test_a_dask_worker_that_hangs_is_restarted).
    found = calls_of_anyio_without_a_task(file.read_text(encoding="utf-8"))
    assert {name: calls for name, calls in found.items() if name not in NOT_FOR_TIMERS.get(name_of(file), ())} == {}


def test_calls_of_anyio_without_a_task_are_found() -> None:
    source = "def f(self):\n    self.tasks.start_soon(g)\nasync def g():\n    await anyio.sleep(anyio.current_time())"
    assert calls_of_anyio_without_a_task(source) == {"f": ["self.tasks.start_soon"]}
