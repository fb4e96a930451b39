"""`Dask`: runs the attempts of a pool on a Dask cluster (extra `dask`).

    async with WorkerPool(fetch, workers=4000, engine=Dask("tcp://scheduler:8786")) as pool:
        ...

Dask starts, restarts and finds the processes, encrypts the connections, and carries the calls. Its scheduler is not
involved in single jobs.
"""

try:
    import distributed
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "asyncpool.dask needs the package distributed: python3 -m pip install 'asyncpool-toolkit[dask]'",
        name=error.name,
    ) from error

from asyncpool.dask.engine import Dask

__all__ = ["Dask"]

del distributed
