"""Known failure modes of worker pools, and which libraries handle them: `python -m benchmarks.gauntlet`.

A case is one small function in `cases/`. `ours.py`, `recipes.py` and `peers.py` adapt the libraries to the interface of
`adapter.py`. Each cell of the table runs in a process of its own (`child.py`) with a time limit (`runner.py`), and
`report.py` writes the document.
"""
