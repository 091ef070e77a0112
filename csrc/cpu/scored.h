// From a logit of the head to z, of which exponentials are taken.
#pragma once

#include "exponential.h"

namespace fastflow {

struct Scored {
  float z;
  float slope;  // of the soft-cap at this logit
};

struct Scaled {
  float scale;

  FASTFLOW_INLINE Scored operator()(float logit) const { return {logit * scale, 1.0f}; }
};

struct Capped {
  float inverse_cap;
  float scaled_cap;

  FASTFLOW_INLINE Scored operator()(float logit) const {
    const Tanh fraction = tanh_and_slope(logit * inverse_cap);
    return {fraction.value * scaled_cap, fraction.slope};
  }
};

}  // namespace fastflow
