// A few neighbouring entries of a row, moved by one instruction.
#pragma once

#include "device.h"

template <class T, int N> struct alignas(sizeof(T) * N) Pack {
    T lane[N];
};

// entries: aligned to a pack.
template <int N, class T> DEVICE Pack<T, N> load(const T *entries) {
    return *reinterpret_cast<const Pack<T, N> *>(entries);
}

template <int N, class T> DEVICE void store(T *entries, const Pack<float, N> &values) {
    Pack<T, N> narrow;
#pragma unroll
    for (int i = 0; i < N; ++i) narrow.lane[i] = device::rounded<T>(values.lane[i]);
    *reinterpret_cast<Pack<T, N> *>(entries) = narrow;
}

// Of the numbers: nan is left out.
template <int N> DEVICE float largest(const Pack<float, N> &values) {
    float highest = values.lane[0];
#pragma unroll
    for (int i = 1; i < N; ++i) highest = fmaxf(highest, values.lane[i]);
    return highest;
}
