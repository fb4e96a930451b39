"""Objects that an interrupt has left half made are collected without a word."""

from __future__ import annotations

import importlib
import pkgutil
import sys
import warnings
from typing import Any

import pytest

import asyncpool


def _finalized() -> list[type[Any]]:
    """Return the classes of the package that define `__del__`, and those that inherit from one."""
    extras = ("asyncpool.dask", "asyncpool.otel", "asyncpool.prometheus")
    for module in pkgutil.walk_packages(asyncpool.__path__, "asyncpool."):
        if not module.name.startswith(extras) and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    classes = {
        value
        for name, module in list(sys.modules.items())
        if name.startswith("asyncpool")
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__.startswith("asyncpool.") and hasattr(value, "__del__")
    }
    return sorted(classes, key=lambda cls: cls.__qualname__)


CLASSES = _finalized()


def test_the_classes_with_a_finalizer_are_found() -> None:
    assert {"Completion", "Cursor", "FedChannel", "GroupChannel", "Producer", "Stream"} <= {
        cls.__name__ for cls in CLASSES
    }


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_a_finalizer_does_nothing_before_the_object_is_initialized(cls: type[Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cls.__new__(cls).__del__()
