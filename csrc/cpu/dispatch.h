// One function, compiled for several instruction sets; the processor's best is chosen when the library is loaded.
//
// FASTFLOW_CLONES marks a function to be compiled so. What it calls must be FASTFLOW_INLINE: code that is not inlined
// into a clone is compiled for the oldest processor. FASTFLOW_NO_DISPATCH leaves the choice to the compiler's -march.
#pragma once

#include <stdint.h>  // with __GLIBC__, where the C library is the GNU one: the loader of others chooses no clones

#define FASTFLOW_INLINE inline __attribute__((always_inline))

#if defined(__clang__)
#define FASTFLOW_COMPILER_HAS_CLONES (__clang_major__ >= 18)
#else
#define FASTFLOW_COMPILER_HAS_CLONES (__GNUC__ >= 12)
#endif

#if !defined(FASTFLOW_NO_DISPATCH) && FASTFLOW_COMPILER_HAS_CLONES && defined(__x86_64__) && defined(__GLIBC__)
#define FASTFLOW_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#define FASTFLOW_HAS_CLONES 1
#else
#define FASTFLOW_CLONES
#define FASTFLOW_HAS_CLONES 0
#endif
