// What the kernels of the row pass are given; row_pass.cu has the contract.
#pragma once

#include <cmath>
#include <cstdint>

#include "logit.h"

constexpr int most_together = 3; // blocks of a multiprocessor: while one waits for others of its row, the rest work

struct RowPass {
    const void *products; // (R, V)
    int64_t products_stride;
    Logit logit;
    const int64_t *targets; // (R,)
    float *target_logit;    // (R,), or null
    float *reference;       // (R,)
    float *total;           // (R,)
    void *exponentials;     // (R, V), or null
    int64_t exponentials_stride;
    int vocabulary;
    float absent;
    int cluster; // blocks that share a row
    int slice;   // columns of each of them; the last may have fewer

    template <class T> DEVICE const T *products_of(int64_t row) const {
        return static_cast<const T *>(products) + row * products_stride;
    }

    template <class T> DEVICE T *exponentials_of(int64_t row) const {
        return static_cast<T *>(exponentials) + row * exponentials_stride;
    }
};

// What a row's exponentials are measured against: its reference, or 0 where all is -inf, since -inf - -inf is nan.
DEVICE float measured_against(float reference) { return reference == -INFINITY ? 0.0f : reference; }
