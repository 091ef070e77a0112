// Functions that take turns on one thread, and tell the sanitizers so.
//
// ThreadSanitizer takes each for a thread of its own and is not told that one runs after the other: what two of them
// access without a barrier between is reported as a race.
#pragma once

#include <ucontext.h>

#include <atomic>
#include <cstddef>
#include <functional>
#include <memory>
#include <utility>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#elif defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

class Fiber {
  public:
    // To be resumed where it was made. identity: what the body can ask for wherever it is.
    Fiber(const void *identity, std::function<void()> body)
        : identity_(identity), body_(std::move(body)), stack_(new char[stack_bytes]) {
#if defined(__SANITIZE_THREAD__)
        tsan_outside_ = __tsan_get_current_fiber();
        tsan_ = __tsan_create_fiber(0);
#endif
        getcontext(&inside_);
        inside_.uc_stack.ss_sp = stack_.get();
        inside_.uc_stack.ss_size = stack_bytes;
        makecontext(&inside_, &Fiber::enter, 0);
    }

    Fiber(const Fiber &) = delete;

    ~Fiber() {
#if defined(__SANITIZE_THREAD__)
        __tsan_destroy_fiber(tsan_);
#endif
    }

    bool is_done() const { return is_done_.load(std::memory_order_relaxed); }

    // Until it pauses or ends.
    void resume() {
        current.store(this, std::memory_order_relaxed);
#if defined(__SANITIZE_ADDRESS__)
        void *fake_stack = nullptr;
        __sanitizer_start_switch_fiber(&fake_stack, stack_.get(), stack_bytes);
#elif defined(__SANITIZE_THREAD__)
        __tsan_switch_to_fiber(tsan_, __tsan_switch_to_fiber_no_sync);
#endif
        swapcontext(&outside_, &inside_);
#if defined(__SANITIZE_ADDRESS__)
        __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
        current.store(nullptr, std::memory_order_relaxed);
    }

    // Of the fiber that calls these: back to whoever resumed it, and what it is.
    static void pause() { running()->leave(); }
    static const void *identity() { return running()->identity_; }

  private:
    static constexpr std::size_t stack_bytes = 128 * 1024;

    static inline std::atomic<Fiber *> current = nullptr;

    static Fiber *running() { return current.load(std::memory_order_relaxed); }

    static void enter() {
        Fiber *const self = running();
        self->arrive(nullptr);
        self->body_();
        self->is_done_.store(true, std::memory_order_relaxed);
        self->leave();
    }

    void leave() {
        void *fake_stack = nullptr;
#if defined(__SANITIZE_ADDRESS__)
        __sanitizer_start_switch_fiber(is_done() ? nullptr : &fake_stack, outside_stack_, outside_bytes_);
#elif defined(__SANITIZE_THREAD__)
        // what comes after an ended fiber comes after all that it did
        __tsan_switch_to_fiber(tsan_outside_, is_done() ? 0 : __tsan_switch_to_fiber_no_sync);
#endif
        swapcontext(&inside_, &outside_);
        arrive(fake_stack);
    }

    void arrive([[maybe_unused]] void *fake_stack) {
#if defined(__SANITIZE_ADDRESS__)
        __sanitizer_finish_switch_fiber(fake_stack, &outside_stack_, &outside_bytes_);
#endif
    }

    const void *const identity_;
    std::function<void()> body_;
    std::unique_ptr<char[]> stack_;
    ucontext_t inside_, outside_;
    std::atomic<bool> is_done_ = false;
#if defined(__SANITIZE_ADDRESS__)
    const void *outside_stack_ = nullptr;
    std::size_t outside_bytes_ = 0;
#elif defined(__SANITIZE_THREAD__)
    void *tsan_ = nullptr;
    void *tsan_outside_ = nullptr;
#endif
};
