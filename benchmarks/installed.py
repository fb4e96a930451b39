"""Which other libraries are installed, and in which version."""

from __future__ import annotations

import importlib.util
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions
from pathlib import Path
from types import ModuleType

__all__ = ["INSTALL_NEXT_GENERATION", "installed", "next_generation"]

# asyncio-pool and asyncio-pool-ng are both imported as asyncio_pool. So the second has a folder of its own outside
# sys.path, and is loaded under another name.
_NEXT_GENERATION = Path(sys.prefix) / "asyncio-pool-ng"
INSTALL_NEXT_GENERATION = f"python3 -m pip install --no-deps --target {_NEXT_GENERATION} 'asyncio-pool-ng>=0.8.1,<0.10'"


def installed(name: str) -> str | None:
    """Return the version of a distribution; None if it is not installed."""
    try:
        found: Distribution | None = distribution(name)
    except PackageNotFoundError:
        found = next(iter(distributions(name=name, path=[str(_NEXT_GENERATION)])), None)
    return None if found is None else found.version


def next_generation() -> ModuleType:
    """Load asyncio-pool-ng."""
    name, folder = "asyncio_pool_ng", _NEXT_GENERATION / "asyncio_pool"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        if spec is None or spec.loader is None:
            raise ImportError(f"no package in {folder}")
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]
