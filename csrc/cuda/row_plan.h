// How a row is laid over the chip: which kernel takes it, in how many blocks.
#pragma once

#include "resident_kernel.h"
#include "streaming_kernel.h"

struct RowPlan {
    bool is_resident;
    int cluster; // blocks of a row
    int slice;   // columns of a block
    int shared_bytes;
};

inline RowPlan streaming(int vocabulary) { return {false, 1, vocabulary, static_cast<int>(sizeof(StreamingShared))}; }

// Slices are multiples of 8 columns, so that each starts at one of 16 bytes in every type.
inline RowPlan resident(int vocabulary, int blocks) {
    const int slice = (vocabulary + 8 * blocks - 1) / (8 * blocks) * 8;
    return {true, blocks, slice, static_cast<int>(sizeof(ResidentShared)) + slice * static_cast<int>(sizeof(float))};
}

// As many blocks to a multiprocessor as can be, and then as few to the row; a row that is too long streams.
inline RowPlan plan_row(int vocabulary, const device::Limits &limits) {
    for (int together = most_together; together > 0; --together) {
        const int share = limits.multiprocessor_bytes / together - limits.reserved_bytes;
        const int available = share < limits.block_bytes ? share : limits.block_bytes;
        for (int blocks = 1; blocks <= limits.cluster; blocks *= 2) {
            const RowPlan plan = resident(vocabulary, blocks);
            if (plan.shared_bytes <= available) return plan;
        }
    }
    return streaming(vocabulary);
}
