// A block's threads over a row, or their slice of it.
#pragma once

#include "pack.h"

constexpr int packs_in_flight = 4; // a thread's loads before the first use: 24 KB of a block of 384 threads

template <int N, class Use> DEVICE void sweep_packs(const float *entries, int first, int last, const Use &use) {
    constexpr int stride = device::threads * N;
    for (int start = first + device::thread() * N; start < last; start += stride * packs_in_flight) {
        Pack<float, N> packs[packs_in_flight];
#pragma unroll
        for (int i = 0; i < packs_in_flight; ++i) {
            if (start + i * stride < last) packs[i] = load<N>(entries + start + i * stride);
        }
#pragma unroll
        for (int i = 0; i < packs_in_flight; ++i) {
            if (start + i * stride < last) use(start + i * stride, packs[i]);
        }
    }
}

// use(at, pack) for all of entries[0, width): packs of N, and single entries for what is left behind them. The same
// thread has the same entries in every sweep of that width.
template <int N, class Use> DEVICE void sweep(const float *entries, int width, const Use &use) {
    const int whole = width / N * N;
    sweep_packs<N>(entries, 0, whole, use);
    if constexpr (N > 1) sweep_packs<1>(entries, whole, width, use);
}
