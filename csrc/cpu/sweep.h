// The exponentials of one row, and their sum.
#pragma once

#include "scored.h"

namespace fastflow {

// Columns pass in groups of 64 independent lanes, which a compiler turns into vectors of whatever width there is.
constexpr int lanes = 64;
constexpr int nowhere = -1;
constexpr float least_exponent = -100.0f;  // exponentials are 0 there, and 0 * -inf would be NaN

// What a stored exponential is multiplied by: constant + slope * exponent.
struct Tilt {
  float constant;
  float slope;
};

struct Sums {
  double others;    // of exponentials, the target's left out
  double weighted;  // of exponential * exponent, the target's left out
  double logits;    // the target's included
};

// One row's sweep but for its extent: what is the same for all its groups of lanes. Without `moments` there is no tilt,
// and of the sums only the first.
template <class Element, class Score, bool has_bias, bool store, bool moments>
struct Sweep {
  Score score;
  float scale;
  float reference;
  Tilt tilt;

  FASTFLOW_INLINE Scored scored(const Element *row, const float *bias, int64_t column) const {
    return score(has_bias ? widened(row[column]) + bias[column] : widened(row[column]));
  }

  // Adds the exponentials of `count` columns to their lanes of `sum`, all but that of lane `target`.
  FASTFLOW_INLINE void add(Element *__restrict__ row, const float *__restrict__ bias, int count, int target,
                           float *__restrict__ sum, float *__restrict__ weighted, float *__restrict__ logits) const {
    for (int lane = 0; lane < count; lane++) {
      const Scored entry = scored(row, bias, lane);
      const float above = entry.logit - reference;  // by roundings only, and they must not be scaled
      const float exponent = (above > 0.0f ? 0.0f : above) * scale;
      const float bounded = exponent < least_exponent ? least_exponent : exponent;
      const float value = lane == target ? 0.0f : exponential(exponent);
      sum[lane] += value;
      if (moments) {
        weighted[lane] += lane == target ? 0.0f : value * bounded;
        logits[lane] += entry.logit;
      }
      const float tilted = moments ? value * (tilt.constant + tilt.slope * bounded) : value;
      if (store) row[lane] = narrowed<Element>(lane == target ? 0.0f : tilted * entry.slope);
    }
  }

  // Over all columns; the target may be `nowhere`.
  FASTFLOW_INLINE Sums operator()(Element *row, const float *bias, int64_t columns, int64_t target) const {
    constexpr int64_t block = 8 * lanes;  // columns between two moves of the lanes to float64
    double others[lanes] = {}, weighted[lanes] = {}, logits[lanes] = {};
    for (int64_t begin = 0; begin < columns; begin += block) {
      const int64_t end = begin + block < columns ? begin + block : columns;
      float sum[lanes] = {}, weighted_sum[lanes] = {}, logit_sum[lanes] = {};
      for (int64_t column = begin; column < end; column += lanes) {
        Element *group = row + column;
        const float *group_bias = has_bias ? bias + column : nullptr;
        const bool holds_target = target >= column && target < column + lanes;
        if (column + lanes <= end && !holds_target)
          add(group, group_bias, lanes, nowhere, sum, weighted_sum, logit_sum);
        else
          add(group, group_bias, column + lanes <= end ? lanes : static_cast<int>(end - column),
              holds_target ? static_cast<int>(target - column) : nowhere, sum, weighted_sum, logit_sum);
      }
      gather(sum, others);
      if (moments) gather(weighted_sum, weighted), gather(logit_sum, logits);
    }
    return moments ? Sums{total(others), total(weighted), total(logits)} : Sums{total(others), 0.0, 0.0};
  }

  static FASTFLOW_INLINE void gather(const float *sum, double *all) {
    for (int lane = 0; lane < lanes; lane++) all[lane] += static_cast<double>(sum[lane]);
  }

  static FASTFLOW_INLINE double total(const double *all) {
    double sum = 0.0;
    for (int lane = 0; lane < lanes; lane++) sum += all[lane];
    return sum;
  }
};

}  // namespace fastflow
