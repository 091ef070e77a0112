// A block's threads over a row, or their slice of it.
#pragma once

#include "pack.h"

// A thread's loads before the first use: up to 24 KB of a block of 384 threads. A fourth pack of 8 would spill.
template <int N> constexpr int packs_in_flight = N > 4 ? 3 : 4;

template <int N, class T, class Use> DEVICE void sweep_packs(const T *entries, int first, int last, const Use &use) {
    constexpr int stride = device::threads * N, count = packs_in_flight<N>;
    for (int start = first + device::thread() * N; start < last; start += stride * count) {
        Pack<T, N> packs[count];
#pragma unroll
        for (int i = 0; i < count; ++i) {
            if (start + i * stride < last) packs[i] = load<N>(entries + start + i * stride);
        }
#pragma unroll
        for (int i = 0; i < count; ++i) {
            if (start + i * stride < last) use(start + i * stride, widened(packs[i]));
        }
    }
}

// use(at, pack) for all of entries[0, width), in float32: packs of N, and single entries for what is left behind them.
// The same thread has the same entries in every sweep of that width and N.
template <int N, class T, class Use> DEVICE void sweep(const T *entries, int width, const Use &use) {
    const int whole = width / N * N;
    sweep_packs<N>(entries, 0, whole, use);
    if constexpr (N > 1) sweep_packs<1>(entries, whole, width, use);
}
