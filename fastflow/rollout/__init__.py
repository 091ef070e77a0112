"""Rollouts: the Sampler protocol and its engines."""
