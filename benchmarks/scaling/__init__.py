"""How well scaling policies do, side by side with the best fixed number of workers: `python -m benchmarks.scaling`.

Real pools on virtual time, against simulated backends of a known capacity. What a policy has to cope with is in
`scenarios.py`: a backend (`backends.py`, `services.py`) and a load (`loads.py`). `simulate.py` runs a pool in it,
`oracle.py` finds what a fixed size could have done, `measure.py` compares, `tables.py` shows it. The questions are
`compare.py`, `autoscale.py`, `day.py` and, with a real server on real time, `real.py`.
"""
