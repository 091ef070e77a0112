// What stands between an entry of the product hidden @ weight^T and a logit.
#pragma once

#include "pack.h"

struct Logit {
    const float *bias; // (V,), or null
    float inverse_temperature;
    float cap;         // the soft-cap over the temperature: the largest logit
    float inverse_cap; // its reciprocal
    float decay_rate;  // -2 / soft-cap

    // softcap(x) / temperature; within a few float32 roundings of the cap where there is one.
    template <bool Softcapped> DEVICE float of(float x) const {
        if constexpr (!Softcapped) return x * inverse_temperature;
        const float decay = device::exponential(decay_rate * fabsf(x));
        return copysignf(cap * device::quotient(1.0f - decay, 1.0f + decay), x);
    }

    // The same of a pack of products, whose first stands in this column.
    template <bool Softcapped, int N> DEVICE Pack<float, N> of(Pack<float, N> products, int column) const {
        if (bias != nullptr) {
            const Pack<float, N> biases = load<N>(bias + column);
#pragma unroll
            for (int i = 0; i < N; ++i) products.lane[i] += biases.lane[i];
        }
#pragma unroll
        for (float &entry : products.lane) entry = of<Softcapped>(entry);
        return products;
    }

    // A logit's exponential times the soft-cap's slope there; 0 for a logit of -inf.
    template <bool Softcapped> DEVICE float sloped(float exponential, float logit) const {
        if constexpr (!Softcapped) return exponential;
        const float fraction = fmaxf(logit, -cap) * inverse_cap;
        return exponential * (1.0f - fraction * fraction);
    }
};
