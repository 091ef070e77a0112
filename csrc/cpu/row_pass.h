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
//     weighted_sum            2.0e-7 * sum of exp(u) (|u| + 1), by the same sums
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

#define FASTFLOW_ABI_VERSION 3

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

// Of each row, arrays of (rows,).
struct fastflow_row_inputs {
  const float *reference;  // at least the largest z of the row; one that roundings have raised above it counts as it
  const int64_t *target;   // outside of [0, columns) it is in another part of the vocabulary, and nothing is left out
  const float *constant;   // the tilt's, or NULL for none
  const float *slope;      // wanted with `constant`
};

// Of each row, arrays of (rows,), written.
struct fastflow_row_outputs {
  float *sum_of_others;
  float *target_logit;  // left alone where the target is not in this part
  float *weighted_sum;  // NULL where it and logit_sum are not wanted
  float *logit_sum;
};

// With z[r][v] = cap(logits[r][v] + bias[v]), where cap(x) = softcap * tanh(x / softcap), or x for softcap 0, and
// u[r][v] = (z[r][v] - reference[r]) * scale:
//
//     sum_of_others[r] = sum over v != target[r] of exp(u[r][v])
//     target_logit[r]  = z[r][target[r]]
//     weighted_sum[r]  = sum over v != target[r] of exp(u[r][v]) * u[r][v]
//     logit_sum[r]     = sum over all v of z[r][v]
//
// and, where `store` is not 0, what the gradient of the logits is made of:
//
//     logits[r][v] = exp(u[r][v]) * (1 - tanh(x / softcap)^2) * (constant[r] + slope[r] * u[r][v]), 0 for v = target[r]
//
// rounded to nearest even; the second factor is there with a soft-cap only, the third with a tilt only. The difference
// comes before the scale: next to the reference it is exact, where products with the scale would have been rounded. NaN
// and infinities take the course that these formulas give them, one by one: NaN stays NaN, z = -inf gives 0, -inf - -inf
// and inf - inf give NaN. But what is multiplied by an exponential of 0 is 0, whatever u is.
//
// logits  (rows, columns) of type `element`, as above; left alone where `store` is 0, else rows may not overlap
// bias    (columns,), or NULL for none
FASTFLOW_API void fastflow_row_exponentials(void *logits, int element, int64_t rows, int64_t columns,
                                            int64_t row_stride, const float *bias, float scale, float softcap,
                                            int store, const struct fastflow_row_inputs *in,
                                            const struct fastflow_row_outputs *out, int threads);

#ifdef __cplusplus
}
#endif
