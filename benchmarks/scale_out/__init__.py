"""Measures the costs and gains of engines: `python -m benchmarks.scale_out`."""
