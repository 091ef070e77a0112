"""Benchmarks, run as modules: `python -m bench.flow_loss_cpu`."""
