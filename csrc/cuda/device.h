// What the kernels ask of the machine that runs them, in namespace `device`. One header each says how:
//
//     KERNEL(most_together), DEVICE       marks of a kernel (blocks that are to share a multiprocessor), of a function
//     threads                             of every block, a multiple of 32
//     thread(), block()                   this one's number within its block, and the block's within the launch
//     shared()                            the block's dynamic shared memory, aligned to 16 bytes
//     block_barrier(), cluster_barrier()  reached by every thread of the block, of the cluster; both order memory
//     in_block(pointer, rank)             what this block's shared pointer points to, in another block of the cluster
//     shuffled(value, mask)               the value of the lane whose number differs by these bits
//     exponential(x), quotient(a, b)      within a few roundings of float32
//     bfloat16, rounded<T>(x)             the narrow type; x in type T, to nearest even
//     widened(x)                          of either type, in float32
//     Limits, limits(&limits)             what the current device offers
//     launch(kernel, shape, stream, argument)
//
// The last two return 0, or an error that description(error) puts in words.
#pragma once

#ifdef __CUDACC__
#include "device_cuda.h"
#else
#include "cuda_on_host.h" // from the tests: the same on a CPU
#endif
