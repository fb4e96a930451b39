"""What importing asyncpool brings, and what it names."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import asyncpool

ROOT = Path(__file__).resolve().parent.parent
PUBLIC_MODULES = ["asyncpool", *(name for _, name, _ in pkgutil.walk_packages(asyncpool.__path__, "asyncpool."))]
PUBLIC_MODULES = [name for name in PUBLIC_MODULES if "._" not in name]


def test_importing_asyncpool_imports_nothing_heavy() -> None:
    heavy = ["aiohttp", "PIL", "rich", "numpy", "uvloop", "trio", "pytest", "hypothesis", "blockbuster", "aiolimiter"]
    heavy += ["multiprocessing", "asyncpool.testing", "sqlite3", "anyio._backends"]
    heavy += ["asyncpool.prometheus", "prometheus_client", "asyncpool.otel", "opentelemetry", "asyncpool.progress"]
    code = f"import asyncpool, sys; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


def test_all_names_everything_public_once() -> None:
    public = {name for name, value in vars(asyncpool).items() if name[0] != "_" and not inspect.ismodule(value)}
    assert set(asyncpool.__all__) == public | {"__version__"}
    assert len(set(asyncpool.__all__)) == len(asyncpool.__all__)


@pytest.mark.parametrize("module", PUBLIC_MODULES)
def test_all_of_every_public_module_exists(module: str) -> None:
    loaded = importlib.import_module(module)
    assert loaded.__doc__
    assert loaded.__all__
    assert [name for name in loaded.__all__ if not hasattr(loaded, name)] == []


def members(owner: Any, name: str) -> list[tuple[str, Any]]:
    found = [(name, owner)]
    if inspect.isclass(owner):
        for key, value in vars(owner).items():
            if not key.startswith("_") and (inspect.isroutine(value) or isinstance(value, property)):
                found.append((f"{name}.{key}", value))
    return found


@pytest.mark.parametrize("module", PUBLIC_MODULES)
def test_every_public_thing_has_a_docstring(module: str) -> None:
    loaded = importlib.import_module(module)
    missing = []
    for name in loaded.__all__:
        value = getattr(loaded, name)
        if not (inspect.isclass(value) or inspect.isroutine(value)):
            continue
        for path, member in members(value, f"{module}.{name}"):
            if not inspect.getdoc(member):
                missing.append(path)
    assert missing == []


def test_every_error_of_the_tree_is_public() -> None:
    from asyncpool import errors

    classes = {name for name, value in vars(errors).items() if inspect.isclass(value) and not name.startswith("_")}
    own = {name for name in classes if issubclass(getattr(errors, name), errors.PoolError)}
    assert own <= set(asyncpool.__all__)
    assert all(inspect.getdoc(getattr(errors, name)) for name in own)
