// The C interface: types and options become template arguments, rows are shared out among threads.
#include "row_pass.h"

#include "maximum.h"
#include "sweep.h"

namespace fastflow {
namespace {

struct Options {
  const float *bias;
  float scale;
  float softcap;
  bool store;
  bool moments;  // or a tilt
};

// What is another for each row.
struct Row {
  float reference;
  int64_t target;  // a column, or `nowhere`
  Tilt tilt;
  float *target_logit;
};

template <class Element, class Score, bool has_bias, bool store, bool moments>
FASTFLOW_INLINE Sums sweep(Element *entries, int64_t columns, const Options &options, Score score, const Row &row) {
  const Sweep<Element, Score, has_bias, store, moments> sweeping{score, options.scale, row.reference, row.tilt};
  if (row.target != nowhere) *row.target_logit = sweeping.scored(entries, options.bias, row.target).logit;
  return sweeping(entries, options.bias, columns, row.target);
}

template <class Element, class Score, bool has_bias>
FASTFLOW_INLINE Sums sweep(Element *entries, int64_t columns, const Options &options, Score score, const Row &row) {
  if (options.moments)
    return options.store ? sweep<Element, Score, has_bias, true, true>(entries, columns, options, score, row)
                         : sweep<Element, Score, has_bias, false, true>(entries, columns, options, score, row);
  return options.store ? sweep<Element, Score, has_bias, true, false>(entries, columns, options, score, row)
                       : sweep<Element, Score, has_bias, false, false>(entries, columns, options, score, row);
}

template <class Element, class Score>
FASTFLOW_INLINE Sums sweep(Element *entries, int64_t columns, const Options &options, Score score, const Row &row) {
  return options.bias ? sweep<Element, Score, true>(entries, columns, options, score, row)
                      : sweep<Element, Score, false>(entries, columns, options, score, row);
}

template <class Element>
FASTFLOW_INLINE Sums sweep(Element *entries, int64_t columns, const Options &options, const Row &row) {
  if (options.softcap == 0.0f) return sweep(entries, columns, options, Plain{}, row);
  return sweep(entries, columns, options, Capped{options.softcap}, row);
}

// What is compiled per instruction set: clones cannot be templates, so that there is one function for each type.

FASTFLOW_CLONES Sums sweep_row(float *entries, int64_t columns, const Options &options, const Row &row) {
  return sweep(entries, columns, options, row);
}

FASTFLOW_CLONES Sums sweep_row(BFloat16 *entries, int64_t columns, const Options &options, const Row &row) {
  return sweep(entries, columns, options, row);
}

FASTFLOW_CLONES float maximum_of(const float *row, int64_t columns, const float *bias) {
  return bias ? row_maximum<float, true>(row, columns, bias) : row_maximum<float, false>(row, columns, bias);
}

FASTFLOW_CLONES float maximum_of(const BFloat16 *row, int64_t columns, const float *bias) {
  return bias ? row_maximum<BFloat16, true>(row, columns, bias) : row_maximum<BFloat16, false>(row, columns, bias);
}

// Without columns the matrix may be NULL, to which nothing may be added.
template <class Element>
Element *row_of(Element *logits, int64_t row, int64_t columns, int64_t row_stride) {
  return columns == 0 ? logits : logits + row * row_stride;
}

template <class Element>
void maximum_of_rows(const Element *logits, int64_t rows, int64_t columns, int64_t row_stride, const float *bias,
                     float *maximum, [[maybe_unused]] int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1 && rows > 1)
  for (int64_t row = 0; row < rows; row++)
    maximum[row] = maximum_of(row_of(logits, row, columns, row_stride), columns, bias);
}

template <class Element>
void sweep_rows(Element *logits, int64_t rows, int64_t columns, int64_t row_stride, const Options &options,
                const fastflow_row_inputs &in, const fastflow_row_outputs &out, [[maybe_unused]] int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1 && rows > 1)
  for (int64_t row = 0; row < rows; row++) {
    const bool is_here = in.target[row] >= 0 && in.target[row] < columns;
    const Tilt tilt = in.constant ? Tilt{in.constant[row], in.slope[row]} : Tilt{1.0f, 0.0f};
    const Row own{in.reference[row], is_here ? in.target[row] : nowhere, tilt, out.target_logit + row};
    const Sums sums = sweep_row(row_of(logits, row, columns, row_stride), columns, options, own);
    out.sum_of_others[row] = static_cast<float>(sums.others);
    if (!out.weighted_sum) continue;
    out.weighted_sum[row] = static_cast<float>(sums.weighted);
    out.logit_sum[row] = static_cast<float>(sums.logits);
  }
}

}  // namespace
}  // namespace fastflow

int fastflow_abi_version(void) { return FASTFLOW_ABI_VERSION; }

void fastflow_row_maximum(const void *logits, int element, int64_t rows, int64_t columns, int64_t row_stride,
                          const float *bias, float *maximum, int threads) {
  using namespace fastflow;
  if (element == FASTFLOW_BFLOAT16)
    maximum_of_rows(static_cast<const BFloat16 *>(logits), rows, columns, row_stride, bias, maximum, threads);
  else
    maximum_of_rows(static_cast<const float *>(logits), rows, columns, row_stride, bias, maximum, threads);
}

void fastflow_row_exponentials(void *logits, int element, int64_t rows, int64_t columns, int64_t row_stride,
                               const float *bias, float scale, float softcap, int store, const fastflow_row_inputs *in,
                               const fastflow_row_outputs *out, int threads) {
  using namespace fastflow;
  const Options options{bias, scale, softcap, store != 0, in->constant || out->weighted_sum};
  if (element == FASTFLOW_BFLOAT16)
    sweep_rows(static_cast<BFloat16 *>(logits), rows, columns, row_stride, options, *in, *out, threads);
  else
    sweep_rows(static_cast<float *>(logits), rows, columns, row_stride, options, *in, *out, threads);
}
