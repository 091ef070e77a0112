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
};

template <class Element, class Score, bool has_bias>
FASTFLOW_INLINE double sweep(Element *row, int64_t columns, const Options &options, Score score, float reference,
                             int64_t target, float *target_logit) {
  const Sweep<Element, Score, has_bias, true> storing{score, options.scale, reference};
  const Sweep<Element, Score, has_bias, false> reading{score, options.scale, reference};
  if (target != nowhere) *target_logit = reading.scored(row, options.bias, target).logit;
  return options.store ? storing(row, options.bias, columns, target) : reading(row, options.bias, columns, target);
}

template <class Element, class Score>
FASTFLOW_INLINE double sweep(Element *row, int64_t columns, const Options &options, Score score, float reference,
                             int64_t target, float *target_logit) {
  return options.bias ? sweep<Element, Score, true>(row, columns, options, score, reference, target, target_logit)
                      : sweep<Element, Score, false>(row, columns, options, score, reference, target, target_logit);
}

template <class Element>
FASTFLOW_INLINE double sweep(Element *row, int64_t columns, const Options &options, float reference, int64_t target,
                             float *target_logit) {
  if (options.softcap == 0.0f) return sweep(row, columns, options, Plain{}, reference, target, target_logit);
  return sweep(row, columns, options, Capped{options.softcap}, reference, target, target_logit);
}

// What is compiled per instruction set: clones cannot be templates, so that there is one function for each type.

FASTFLOW_CLONES double sweep_row(float *row, int64_t columns, const Options &options, float reference, int64_t target,
                                 float *target_logit) {
  return sweep(row, columns, options, reference, target, target_logit);
}

FASTFLOW_CLONES double sweep_row(BFloat16 *row, int64_t columns, const Options &options, float reference,
                                 int64_t target, float *target_logit) {
  return sweep(row, columns, options, reference, target, target_logit);
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
                const float *reference, const int64_t *target, float *sum_of_others, float *target_logit,
                [[maybe_unused]] int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1 && rows > 1)
  for (int64_t row = 0; row < rows; row++) {
    const bool is_here = target[row] >= 0 && target[row] < columns;
    Element *entries = row_of(logits, row, columns, row_stride);
    sum_of_others[row] = static_cast<float>(sweep_row(entries, columns, options, reference[row],
                                                      is_here ? target[row] : nowhere, target_logit + row));
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
                               const float *bias, float scale, float softcap, const float *reference,
                               const int64_t *target, int store, float *sum_of_others, float *target_logit,
                               int threads) {
  using namespace fastflow;
  const Options options{bias, scale, softcap, store != 0};
  if (element == FASTFLOW_BFLOAT16)
    sweep_rows(static_cast<BFloat16 *>(logits), rows, columns, row_stride, options, reference, target, sum_of_others,
               target_logit, threads);
  else
    sweep_rows(static_cast<float *>(logits), rows, columns, row_stride, options, reference, target, sum_of_others,
               target_logit, threads);
}
