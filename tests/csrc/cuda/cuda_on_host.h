// csrc/cuda/device.h on a CPU, to run the kernels' own source where there is no GPU.
//
// Blocks run one cluster at a time, each of their threads as a fiber. Shared memory is allocated to the byte, filled
// with nan, and gone when its block has ended; a barrier that some threads never reach ends the process. Not shown here:
// the exp and division of the device, its scheduling, and everything about time.
#pragma once

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "fiber.h"
#include "launch_shape.h"

#define DEVICE inline
#define KERNEL(most_together) void

namespace device {

constexpr int threads = 64; // two warps: as many fibers as a barrier between warps takes

inline Limits host_limits = {232448, 233472, 1024, 8}; // an H200's, where a test pretends nothing else

namespace host {

// Relaxed, so that they order nothing between the fibers that ThreadSanitizer watches.
class Counter {
  public:
    long long operator()() const { return value_.load(std::memory_order_relaxed); }
    void increment() { value_.fetch_add(1, std::memory_order_relaxed); }

  private:
    std::atomic<long long> value_ = 0;
};

inline Counter progress; // arrivals at barriers, and threads that ended

class Barrier {
  public:
    explicit Barrier(int expected) : expected_(expected) {}

    void wait() {
        const long long round = arrivals_() / expected_;
#if defined(__SANITIZE_THREAD__)
        __tsan_release(this);
#endif
        arrivals_.increment();
        progress.increment();
        while (arrivals_() / expected_ == round) Fiber::pause();
#if defined(__SANITIZE_THREAD__)
        __tsan_acquire(this);
#endif
    }

  private:
    const int expected_;
    Counter arrivals_;
};

struct Warp {
    Barrier barrier{32};
    float exchange[32];
};

struct Block {
    Block(long long number, int shared_bytes)
        : number(number), shared_bytes(shared_bytes), shared(malloc(shared_bytes), free) {
        memset(shared.get(), 0xff, shared_bytes);
    }

    long long number;
    int shared_bytes;
    std::unique_ptr<void, void (*)(void *)> shared; // gone when its last thread has ended
    std::atomic<int> running = threads;
    Barrier barrier{threads};
    Warp warps[threads / 32];
};

struct Cluster {
    explicit Cluster(int size) : barrier(size * threads) {}

    std::vector<std::unique_ptr<Block>> blocks;
    Barrier barrier;
};

struct Thread {
    Cluster *cluster;
    Block *block;
    int number;
};

inline const Thread &running() { return *static_cast<const Thread *>(Fiber::identity()); }

[[noreturn]] inline void refuse(const char *what) {
    fprintf(stderr, "cuda_on_host: %s\n", what);
    abort();
}

template <class Body> void run_cluster(Cluster &cluster, const Body &body) {
    std::vector<Thread> all;
    for (auto &block : cluster.blocks) {
        for (int number = 0; number < threads; ++number) all.push_back({&cluster, block.get(), number});
    }
    std::vector<std::unique_ptr<Fiber>> fibers;
    for (const Thread &thread : all) {
        fibers.push_back(std::make_unique<Fiber>(&thread, [&] {
            body();
            progress.increment();
            if (--thread.block->running == 0) thread.block->shared.reset();
        }));
    }
    for (bool is_done = false; !is_done;) {
        const long long before = progress();
        is_done = true;
        for (auto &fiber : fibers) {
            if (!fiber->is_done()) fiber->resume();
            is_done = is_done && fiber->is_done();
        }
        if (!is_done && progress() == before) refuse("a barrier that not all threads reach");
    }
}

} // namespace host

inline int thread() { return host::running().number; }
inline long long block() { return host::running().block->number; }
inline unsigned char *shared() { return static_cast<unsigned char *>(host::running().block->shared.get()); }
inline void block_barrier() { host::running().block->barrier.wait(); }
inline void cluster_barrier() { host::running().cluster->barrier.wait(); }

template <class T> T *in_block(T *pointer, int rank) {
    const host::Block &own = *host::running().block;
    const auto offset = reinterpret_cast<unsigned char *>(pointer) - static_cast<unsigned char *>(own.shared.get());
    if (offset < 0 || offset + static_cast<long>(sizeof(T)) > own.shared_bytes) host::refuse("not in shared memory");
    void *const other = host::running().cluster->blocks.at(rank)->shared.get();
    return reinterpret_cast<T *>(static_cast<unsigned char *>(other) + offset);
}

inline float shuffled(float value, int mask) {
    const int lane = thread() % 32;
    host::Warp &warp = host::running().block->warps[thread() / 32];
    warp.exchange[lane] = value;
    warp.barrier.wait();
    const float received = warp.exchange[lane ^ mask];
    warp.barrier.wait();
    return received;
}

inline float exponential(float x) { return std::exp(x); }
inline float quotient(float a, float b) { return a / b; }

struct bfloat16 {
    uint16_t bits;
};

template <class T> T rounded(float x);
template <> inline float rounded<float>(float x) { return x; }
template <> inline bfloat16 rounded<bfloat16>(float x) {
    if (std::isnan(x)) return {0x7fff};
    uint32_t bits;
    memcpy(&bits, &x, sizeof(bits));
    return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

inline float widened(float x) { return x; }
inline float widened(bfloat16 x) {
    const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float wide;
    memcpy(&wide, &bits, sizeof(wide));
    return wide;
}

inline const char *description(int error) { return error == 0 ? "no error" : "invalid argument"; }

inline int limits(Limits *limits) {
    *limits = host_limits;
    return 0;
}

template <class Argument>
int launch(void (*kernel)(Argument), LaunchShape shape, void *, const Argument &argument) {
    for (long long first = 0; first < shape.blocks; first += shape.cluster) {
        host::Cluster cluster(shape.cluster);
        for (int rank = 0; rank < shape.cluster; ++rank) {
            cluster.blocks.push_back(std::make_unique<host::Block>(first + rank, shape.shared_bytes));
        }
        host::run_cluster(cluster, [&] { kernel(argument); });
    }
    return 0;
}

} // namespace device
