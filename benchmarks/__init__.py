"""What asyncpool costs, measured beside what one would write without it: `python -m benchmarks`.

Each question is one function in a file of its own; pairing, ratios and tables are `harness.py`, and what the pool is
measured against is `rivals.py`. Figures of one machine mean little on another: ratios within one round mean more.
"""
