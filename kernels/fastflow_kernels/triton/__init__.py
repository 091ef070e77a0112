"""What runs on NVIDIA devices: the Triton kernels, one a file beside the function that launches it, and the way to the
CUDA library. What imports Triton is imported only where it is used."""
