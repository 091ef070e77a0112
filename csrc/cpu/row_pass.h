// The sweeps over a block of logits on a CPU: maximum, exponentials and their sum, in one pass each.
//
// A plain C interface. Matrices are row-major with contiguous columns; row_stride counts elements. Pointers need the
// alignment of one element. Rows are shared out among `threads` threads (at least 1) where OpenMP was available.
//
// Errors, each the largest over a dense sweep of its arguments (tests/csrc/test_row_pass_errors.py):
//
//     exp(x), x <= 0          8.5e-8 relative; 0 below x = -87, where the true value is under 1.7e-38
//     tanh(x)                 2.0e-7 relative, and so 2.0e-7 * softcap at most in a capped logit
//     1 - tanh(x)^2           3.5e-7 relative: no cancellation, however close the tanh is to 1
//     sum_of_others           5.0e-7 relative for any number of columns, usually below 1e-7: sums of 8 exponentials in
//                             float32, sums of those in float64
//
// The arguments x themselves carry the roundings of float32. Where there is a processor instruction for it, a product
// and a sum are rounded once, so that instruction sets differ in last bits.
#pragma once

#include <stdint.h>

#if defined(__GNUC__)
#define FASTFLOW_API __attribute__((visibility("default")))
#else
#define FASTFLOW_API
#endif

#define FASTFLOW_ABI_VERSION 2

enum fastflow_element { FASTFLOW_FLOAT32 = 0, FASTFLOW_BFLOAT16 = 1 };

#ifdef __cplusplus
extern "C" {
#endif

// FASTFLOW_ABI_VERSION of the library; a caller that knows another one must not call the rest.
FASTFLOW_API int fastflow_abi_version(void);

// What this processor runs: "avx512", "avx2", "neon" or "portable".
FASTFLOW_API const char *fastflow_instruction_set(void);

// maximum[r] = max over v of logits[r][v] + bias[v]; NaN where an entry is NaN, -inf where there are no columns.
//
// logits  (rows, columns) of type `element`, a fastflow_element; may be NULL where there are no columns
// bias    (columns,), or NULL for none
// maximum (rows,), written
FASTFLOW_API void fastflow_row_maximum(const void *logits, int element, int64_t rows, int64_t columns,
                                       int64_t row_stride, const float *bias, float *maximum, int threads);

// With z[r][v] = cap(logits[r][v] + bias[v]), where cap(x) = softcap * tanh(x / softcap), or x for softcap 0:
//
//     sum_of_others[r] = sum over v != target[r] of exp((z[r][v] - reference[r]) * scale)
//     target_logit[r]  = z[r][target[r]]
//
// and, where `store` is not 0, what the gradient of the logits is made of:
//
//     logits[r][v] = exp((z[r][v] - reference[r]) * scale) * (1 - tanh(x / softcap)^2), 0 for v = target[r]
//
// rounded to nearest even; the last factor is there with a soft-cap only. The difference comes before the scale: next to
// the reference it is exact, where products with the scale would have been rounded. NaN and infinities take the course that
// these formulas give them, one by one: NaN stays NaN, z = -inf gives 0, -inf - -inf and inf - inf give NaN.
//
// logits        (rows, columns) of type `element`, as above; left alone where `store` is 0, else rows may not overlap
// bias          (columns,), or NULL for none
// reference     (rows,), at least the largest z of the row; one that roundings have raised above it counts as it
// target        (rows,); outside of [0, columns) it is in another part of the vocabulary, and nothing is left out
// sum_of_others (rows,), written
// target_logit  (rows,), written where the target is in this part, else left alone
FASTFLOW_API void fastflow_row_exponentials(void *logits, int element, int64_t rows, int64_t columns,
                                            int64_t row_stride, const float *bias, float scale, float softcap,
                                            const float *reference, const int64_t *target, int store,
                                            float *sum_of_others, float *target_logit, int threads);

#ifdef __cplusplus
}
#endif
