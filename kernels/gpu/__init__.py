"""The Triton kernels, one a file, each beside the function that launches it. Imported only where Triton is."""
