// A few neighbouring entries of a row, moved by one instruction.
#pragma once

#include "device.h"

constexpr int widest_move = 16; // bytes

// A larger one takes several instructions.
template <class T, int N> struct alignas(sizeof(T) * N < widest_move ? sizeof(T) * N : widest_move) Pack {
    T lane[N];
};

// entries: aligned as a pack is.
template <int N, class T> DEVICE Pack<T, N> load(const T *entries) {
    return *reinterpret_cast<const Pack<T, N> *>(entries);
}

template <class T, int N> DEVICE Pack<float, N> widened(const Pack<T, N> &narrow) {
    Pack<float, N> values;
#pragma unroll
    for (int i = 0; i < N; ++i) values.lane[i] = device::widened(narrow.lane[i]);
    return values;
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
