"""Benchmarks, run as modules: `python -m bench.kernels --device cpu --quick`."""
