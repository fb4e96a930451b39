"""What asyncpool costs, beside what one would write without it and beside other libraries: `python -m benchmarks`.

Each question is a file in `questions/`, who is measured is in `rivals.py`, how in `harness.py`; `report.py` writes
docs/benchmarks.md. Figures of one machine mean little on another: ratios within one round mean more.
"""
