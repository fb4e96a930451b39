"""What an engine costs and gains: `python -m benchmarks.scale_out`."""
