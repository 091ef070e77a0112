"""The projection on Hopper by a CUTLASS-class product: QuACK's (CuTe DSL), with an epilogue of ours.

It takes the place of triton/project.py's kernel and leaves what that leaves: a total per row and tile, and exponentials
against the target's logit in bfloat16, which the vendor's library multiplies. `emulation.py` states the same in plain
PyTorch: the CPU's projection, by which the tests check all the rest.

Its totals have the target's term, too, which combine.py takes out again. So a target of probability p leaves 1 - p with
the 7 digits of p, where triton/project.py gives it 7 digits of its own.
"""
