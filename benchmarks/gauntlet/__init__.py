"""The known ways in which worker pools die, and who survives them: `python -m benchmarks.gauntlet`.

A case is one small function in `cases/`; how a library is asked to do it stands in `ours.py`, `recipes.py` and
`peers.py`, behind the interface of `adapter.py`. Each cell of the table runs in a process of its own (`child.py`) under
a time limit (`runner.py`), and `report.py` writes the document.
"""
