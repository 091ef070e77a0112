// What stands between an entry of the product hidden @ weight^T and a logit.
#pragma once

#include "pack.h"

struct Logit {
    const float *bias; // (V,), or null
    float inverse_temperature;
    float cap;         // the soft-cap over the temperature: the largest logit
    float inverse_cap; // its reciprocal
    float decay_rate;  // -2 / soft-cap

    // softcap(x) / temperature, within a few float32 roundings of itself. Near 0, where the quotient would cancel, the
    // tanh is its series; that one's next term is 6e-8 of the value at 0.2.
    template <bool Softcapped> DEVICE float of(float x) const {
        if constexpr (!Softcapped) return x * inverse_temperature;
        const float size = -0.5f * decay_rate * fabsf(x), square = size * size;
        const float series = size * (1.0f - square * (1.0f / 3 - square * (2.0f / 15 - square * (17.0f / 315))));
        const float decay = device::exponential(-2.0f * size);
        return copysignf(cap * (size < 0.2f ? series : device::quotient(1.0f - decay, 1.0f + decay)), x);
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
