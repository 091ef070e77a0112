// Numbers that a launch is made of.
#pragma once

namespace device {

constexpr int most_blocks = 8; // of a cluster, on every device that has clusters

struct LaunchShape {
    long long blocks;
    int cluster;      // consecutive blocks that reach each other's shared memory
    int shared_bytes; // dynamic, of each block
};

struct Limits {
    int block_bytes;          // shared memory that one block may have
    int multiprocessor_bytes; // shared memory of a multiprocessor
    int reserved_bytes;       // of it, what the system takes for each block
    int cluster;              // blocks of the largest cluster, at most `most_blocks`; 1 where there are none
};

} // namespace device
