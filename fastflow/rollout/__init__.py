"""Rollouts: the protocol of a sampler, and the engines that follow it."""
