"""Compares the cost of asyncpool with handwritten code and with other libraries: `python -m benchmarks`.

Each question is a file in `questions/`. `rivals.py` has the contenders, `harness.py` measures them, and `report.py`
writes docs/benchmarks.md. Figures of one machine mean little on another; ratios within one round mean more.
"""
