"""The Triton kernels, one a file beside the function that launches it. What imports Triton is imported only where it is
used."""
