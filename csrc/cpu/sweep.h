// The exponentials of one row, and their sum.
#pragma once

#include "scored.h"

namespace fastflow {

// Columns pass in groups of 64 independent lanes, which a compiler turns into vectors of whatever width there is.
constexpr int lanes = 64;
constexpr int nowhere = -1;

// One row's sweep but for its extent: what is the same for all its groups of lanes.
template <class Element, class Score, bool has_bias, bool store>
struct Sweep {
  Score score;
  float scale;
  float reference;

  FASTFLOW_INLINE Scored scored(const Element *row, const float *bias, int64_t column) const {
    return score(has_bias ? widened(row[column]) + bias[column] : widened(row[column]));
  }

  // Adds the exponentials of `count` columns to their lanes of `sum`, all but that of lane `target`.
  FASTFLOW_INLINE void add(Element *__restrict__ row, const float *__restrict__ bias, int count, int target,
                           float *__restrict__ sum) const {
    for (int lane = 0; lane < count; lane++) {
      const Scored entry = scored(row, bias, lane);
      const float above = entry.logit - reference;  // by roundings only, and they must not be scaled
      const float value = lane == target ? 0.0f : exponential((above > 0.0f ? 0.0f : above) * scale);
      sum[lane] += value;
      if (store) row[lane] = narrowed<Element>(lane == target ? 0.0f : value * entry.slope);
    }
  }

  // The sum over all columns but `target`, which may be `nowhere`.
  FASTFLOW_INLINE double operator()(Element *row, const float *bias, int64_t columns, int64_t target) const {
    constexpr int64_t block = 8 * lanes;  // columns between two moves of the lanes to float64
    double total[lanes] = {};
    for (int64_t begin = 0; begin < columns; begin += block) {
      const int64_t end = begin + block < columns ? begin + block : columns;
      float sum[lanes] = {};
      for (int64_t column = begin; column < end; column += lanes) {
        Element *group = row + column;
        const float *group_bias = has_bias ? bias + column : nullptr;
        const bool holds_target = target >= column && target < column + lanes;
        if (column + lanes <= end && !holds_target)
          add(group, group_bias, lanes, nowhere, sum);
        else
          add(group, group_bias, column + lanes <= end ? lanes : static_cast<int>(end - column),
              holds_target ? static_cast<int>(target - column) : nowhere, sum);
      }
      for (int lane = 0; lane < lanes; lane++) total[lane] += static_cast<double>(sum[lane]);
    }
    double all = 0.0;
    for (int lane = 0; lane < lanes; lane++) all += total[lane];
    return all;
  }
};

}  // namespace fastflow
