"""Sampling from a power of the model's distribution, p^alpha, without training: MCMC and sequential Monte Carlo."""
