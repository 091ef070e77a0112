"""A checking interpreter for Triton kernels: on a CPU, what compute-sanitizer would say of them on a GPU, and more.

Triton's interpreter runs a kernel on whatever memory its pointers reach. Here every pointer argument of a launch has
an address space of its own that holds the elements of the tensor's view and nothing else, memory starts out poisoned,
and programs run in any order; findings.py lists what is reported, each with its line in the kernel's source. Tensors
on the meta device have addresses and no memory, which checks address arithmetic at sizes that no machine here holds.

    python -m bench.checking              every kernel of fastflow_kernels/triton, under a minute
    python -m bench.checking --planted    the same checks on kernels with a defect planted in each (mutations.py)

The checks see memory and numbers. They do not see what a compiler makes of a kernel (bench.resources) or what threads
of one program do to each other (bench.sanitize, on a GPU).
"""
