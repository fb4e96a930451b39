"""How well scaling policies do, compared with the best fixed number of workers: `python -m benchmarks.scaling`.

Real pools run in virtual time against simulated backends of known capacity. A scenario (`scenarios.py`) is a backend
(`backends.py`, `services.py`) and a load (`loads.py`). `simulate.py` runs a pool in a scenario, `oracle.py` finds the
best fixed size, `measure.py` compares the two, and `tables.py` formats the results. The questions are in `compare.py`,
`autoscale.py`, `day.py` and, with a real server in real time, `real.py`. `page.py` writes the tables of
docs/benchmarks/scaling.md from the saved results.
"""
