// From a product of the head to its logit.
#pragma once

#include "exponential.h"

namespace fastflow {

struct Scored {
  float logit;
  float slope;  // of the soft-cap at this product
};

struct Plain {
  FASTFLOW_INLINE Scored operator()(float product) const { return {product, 1.0f}; }
};

struct Capped {
  float cap;

  FASTFLOW_INLINE Scored operator()(float product) const {
    const Tanh fraction = tanh_and_slope(product / cap);
    return {fraction.value * cap, fraction.slope};
  }
};

}  // namespace fastflow
