// A row stays on the chip between its two sweeps: one read and one write of device memory.
//
// A cluster of blocks shares the row, each with a slice of its logits in shared memory. The first sweep brings them in
// and finds the largest; the second takes their exponentials, which it sums and writes at once. One exp an entry.
#pragma once

#include "reduce.h"
#include "row_pass.h"
#include "sweep.h"

// At the start of a block's shared memory; the slice stands behind it.
struct alignas(16) ResidentShared {
    float highest_of_warps[warps];
    float total_of_warps[warps];
    float highest;
    float total_of_blocks[device::most_blocks]; // in the row's first block only
};

DEVICE float highest_of_cluster(ResidentShared &shared, int blocks) {
    float highest = shared.highest;
    for (int rank = 0; rank < blocks; ++rank) highest = fmaxf(highest, *device::in_block(&shared.highest, rank));
    return highest;
}

// The target's logit, to memory where it is wanted, by the block whose slice [begin, end) has it; -inf takes its place, and counts as 0.
DEVICE void take_out_target(const RowPass &pass, int64_t row, float *slice, int begin, int end) {
    const int64_t target = pass.targets[row];
    if (target >= begin && target < end) {
        if (pass.target_logit != nullptr) pass.target_logit[row] = slice[target - begin];
        slice[target - begin] = -INFINITY;
    } else if (pass.target_logit != nullptr && begin == 0 && (target < 0 || target >= pass.vocabulary)) {
        pass.target_logit[row] = pass.absent;
    }
}

template <int N, bool Softcapped, class Product, class Stored> KERNEL(most_together) resident_kernel(RowPass pass) {
    const int64_t row = device::block() / pass.cluster;
    const int rank = device::block() % pass.cluster;
    const int begin = rank * pass.slice < pass.vocabulary ? rank * pass.slice : pass.vocabulary;
    const int end = pass.vocabulary - begin > pass.slice ? begin + pass.slice : pass.vocabulary;
    const bool is_leader = device::thread() == 0;
    ResidentShared &shared = *reinterpret_cast<ResidentShared *>(device::shared());
    float *const slice = reinterpret_cast<float *>(device::shared() + sizeof(ResidentShared));

    float highest = -INFINITY;
    sweep<N>(pass.products_of<Product>(row) + begin, end - begin, [&](int at, const auto &products) {
        const auto logits = pass.logit.of<Softcapped>(products, begin + at);
        highest = fmaxf(highest, largest(logits));
        store(slice + at, logits);
    });
    highest = over_block(highest, shared.highest_of_warps, Maximum());

    if (is_leader) {
        shared.highest = highest;
        take_out_target(pass, row, slice, begin, end);
    }
    device::cluster_barrier();
    const float reference = highest_of_cluster(shared, pass.cluster);

    const float against = measured_against(reference);
    Stored *const exponentials = pass.exponentials_of<Stored>(row) + begin;
    float total = 0.0f;
    sweep<(N < 4 ? N : 4)>(slice, end - begin, [&](int at, auto values) {
#pragma unroll
        for (float &value : values.lane) {
            const float exponential = device::exponential(value - against);
            total += exponential;
            value = pass.logit.sloped<Softcapped>(exponential, value);
        }
        store(exponentials + at, values);
    });
    total = over_block(total, shared.total_of_warps, Sum());

    // The first block receives the others' totals: whoever reads another block's memory must know that it still runs.
    if (is_leader) *device::in_block(shared.total_of_blocks + rank, 0) = total;
    device::cluster_barrier();
    if (is_leader && rank == 0) {
        for (int other = 1; other < pass.cluster; ++other) total += shared.total_of_blocks[other];
        pass.reference[row] = reference;
        pass.total[row] = total;
    }
}
