// One number of all threads of a block.
#pragma once

#include "device.h"

constexpr int warps = device::threads / 32;

struct Sum {
    DEVICE float operator()(float a, float b) const { return a + b; }
};

struct Maximum {
    DEVICE float operator()(float a, float b) const { return fmaxf(a, b); }
};

// To every thread, in an order that never changes. of_warps: `warps` shared floats that nothing else uses.
template <class Combine> DEVICE float over_block(float value, float *of_warps, Combine combine) {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) value = combine(value, device::shuffled(value, mask));
    if (device::thread() % 32 == 0) of_warps[device::thread() / 32] = value;
    device::block_barrier();
    value = of_warps[0];
#pragma unroll
    for (int warp = 1; warp < warps; ++warp) value = combine(value, of_warps[warp]);
    return value;
}
