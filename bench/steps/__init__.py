"""What `python -m bench.step` measures: one update of the same trajectories by us and by others."""
