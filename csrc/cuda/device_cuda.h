// device.h for CUDA: compute capability 8.0, and clusters from 9.0.
#pragma once

#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "launch_shape.h"

#define DEVICE __device__ __forceinline__
#define KERNEL(most_together) __global__ void __launch_bounds__(device::threads, most_together)

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define FASTFLOW_HAS_CLUSTERS 1
#else
#define FASTFLOW_HAS_CLUSTERS 0
#endif

namespace device {

constexpr int threads = 384;

DEVICE int thread() { return threadIdx.x; }
DEVICE int block() { return blockIdx.x; }

DEVICE unsigned char *shared() {
    extern __shared__ __align__(16) unsigned char memory[];
    return memory;
}

DEVICE void block_barrier() { __syncthreads(); }

DEVICE void cluster_barrier() {
#if FASTFLOW_HAS_CLUSTERS
    cooperative_groups::this_cluster().sync();
#else
    __syncthreads();
#endif
}

template <class T> DEVICE T *in_block(T *pointer, int rank) {
#if FASTFLOW_HAS_CLUSTERS
    return cooperative_groups::this_cluster().map_shared_rank(pointer, rank);
#else
    return pointer;
#endif
}

DEVICE float shuffled(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
DEVICE float exponential(float x) { return __expf(x); }
DEVICE float quotient(float a, float b) { return __fdividef(a, b); }

using bfloat16 = __nv_bfloat16;

template <class T> DEVICE T rounded(float x);
template <> DEVICE float rounded<float>(float x) { return x; }
template <> DEVICE bfloat16 rounded<bfloat16>(float x) { return __float2bfloat16_rn(x); }

DEVICE float widened(float x) { return x; }
DEVICE float widened(bfloat16 x) { return __bfloat162float(x); }

inline const char *description(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

inline int limits(Limits *limits) {
    int number = 0, major = 0;
    const auto ask = [&](int *value, cudaDeviceAttr what) { return cudaDeviceGetAttribute(value, what, number); };
    cudaError_t error = cudaGetDevice(&number);
    if (!error) error = ask(&major, cudaDevAttrComputeCapabilityMajor);
    if (!error) error = ask(&limits->block_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin);
    if (!error) error = ask(&limits->multiprocessor_bytes, cudaDevAttrMaxSharedMemoryPerMultiprocessor);
    if (!error) error = ask(&limits->reserved_bytes, cudaDevAttrReservedSharedMemoryPerBlock);
    limits->cluster = major >= 9 ? most_blocks : 1;
    return error;
}

template <class Argument>
int launch(void (*kernel)(Argument), LaunchShape shape, void *stream, const Argument &argument) {
    Limits most = {}; // not this launch's need: another thread may be launching the kernel with more
    cudaError_t error = static_cast<cudaError_t>(limits(&most));
    if (!error) error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most.block_bytes);
    if (!error) {
        error = cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                     cudaSharedmemCarveoutMaxShared);
    }
    if (error) return error;

    cudaLaunchAttribute cluster = {};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {static_cast<unsigned>(shape.cluster), 1, 1};
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(shape.blocks));
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shape.shared_bytes;
    config.stream = static_cast<cudaStream_t>(stream);
    config.attrs = &cluster;
    config.numAttrs = shape.cluster > 1;
    return cudaLaunchKernelEx(&config, kernel, argument);
}

} // namespace device
