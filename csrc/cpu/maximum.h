// The maximum of one row.
#pragma once

#include "element.h"

namespace fastflow {

// NaN if one of them is.
FASTFLOW_INLINE float larger(float left, float right) { return right > left || right != right ? right : left; }

// bias may be null where has_bias is false.
template <class Element, bool has_bias>
FASTFLOW_INLINE float row_maximum(const Element *row, int64_t columns, const float *bias) {
  constexpr int lanes = 64;
  const auto logit = [=](int64_t column) __attribute__((always_inline)) {
    return has_bias ? widened(row[column]) + bias[column] : widened(row[column]);
  };
  float largest[lanes];
  for (int lane = 0; lane < lanes; lane++) largest[lane] = -__builtin_inff();
  int64_t column = 0;
  for (; column + lanes <= columns; column += lanes)
    for (int lane = 0; lane < lanes; lane++) largest[lane] = larger(largest[lane], logit(column + lane));
  for (; column < columns; column++) largest[0] = larger(largest[0], logit(column));
  for (int lane = 1; lane < lanes; lane++) largest[0] = larger(largest[0], largest[lane]);
  return largest[0];
}

}  // namespace fastflow
