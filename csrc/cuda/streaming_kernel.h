// A row that is read from device memory in every sweep: a single one where nothing is stored, else two.
#pragma once

#include <type_traits>

#include "reduce.h"
#include "row_pass.h"
#include "sweep.h"

struct StreamingShared {
    float highest_of_warps[warps];
    float total_of_warps[warps];
};

// Stored: the type of the exponentials; void for none. One block a row.
template <int N, bool Softcapped, class Product, class Stored> KERNEL(most_together) streaming_kernel(RowPass pass) {
    const int64_t row = device::block();
    const bool is_leader = device::thread() == 0;
    StreamingShared &shared = *reinterpret_cast<StreamingShared *>(device::shared());

    const Product *const products = pass.products_of<Product>(row);
    const int64_t target = pass.targets[row];
    if (is_leader && pass.target_logit != nullptr) {
        const bool is_here = target >= 0 && target < pass.vocabulary;
        pass.target_logit[row] =
            is_here ? pass.logit.of<Softcapped>(widened(load<1>(products + target)), target).lane[0] : pass.absent;
    }

    float highest = -INFINITY; // of this thread's entries so far, which `total` is measured against
    float total = 0.0f;
    sweep<N>(products, pass.vocabulary, [&](int at, const auto &entries) {
        const auto logits = pass.logit.of<Softcapped>(entries, at);
        const float higher = fmaxf(highest, largest(logits));
        const float against = measured_against(higher);
        total *= device::exponential(highest - against);
#pragma unroll
        for (const float &logit : logits.lane) {
            const float exponential = device::exponential(logit - against);
            total += at++ == target ? 0.0f : exponential;
        }
        highest = higher;
    });
    const float reference = over_block(highest, shared.highest_of_warps, Maximum());
    const float against = measured_against(reference);
    total = over_block(total * device::exponential(highest - against), shared.total_of_warps, Sum());
    if (is_leader) {
        pass.reference[row] = reference;
        pass.total[row] = total;
    }

    if constexpr (!std::is_void_v<Stored>) {
        Stored *const exponentials = pass.exponentials_of<Stored>(row);
        sweep<N>(products, pass.vocabulary, [&](int at, const auto &entries) {
            auto values = pass.logit.of<Softcapped>(entries, at);
            int column = at;
#pragma unroll
            for (float &value : values.lane) {
                const float exponential = device::exponential(value - against);
                value = column++ == target ? 0.0f : pass.logit.sloped<Softcapped>(exponential, value);
            }
            store(exponentials + at, values);
        });
    }
}
