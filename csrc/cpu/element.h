// Types that logits are kept in; all arithmetic is in float.
#pragma once

#include <stdint.h>
#include <string.h>

#include "dispatch.h"

namespace fastflow {

struct BFloat16 {
  uint16_t bits;
};

FASTFLOW_INLINE uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

FASTFLOW_INLINE float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

FASTFLOW_INLINE float widened(float value) { return value; }

FASTFLOW_INLINE float widened(BFloat16 value) { return float_of(static_cast<uint32_t>(value.bits) << 16); }

template <class Element>
Element narrowed(float value);

template <>
FASTFLOW_INLINE float narrowed<float>(float value) {
  return value;
}

// To nearest even. Rounding could carry a NaN's bits into those of an infinity; it gets a quiet NaN's instead.
template <>
FASTFLOW_INLINE BFloat16 narrowed<BFloat16>(float value) {
  const uint32_t bits = bits_of(value);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return {static_cast<uint16_t>(value != value ? 0x7fc0 : rounded)};
}

}  // namespace fastflow
