// exp and tanh without branches, so that compilers vectorise loops over them.
#pragma once

#include "element.h"

namespace fastflow {

// exp(x) for x <= 0, or above it by rounding only. 0 below -87, before powers of two become subnormal. NaN stays NaN.
//
// x = n log 2 + r with |r| <= log 2 / 2; log 2 comes in two parts, of which n times the first is exact. The polynomial
// is Cephes' expf.
FASTFLOW_INLINE float exponential(float x) {
  constexpr float round_to_integer = 12582912.0f;  // 1.5 * 2^23: what is added to it has its integer in the low bits
  const float shifted = x * 1.44269504088896341f + round_to_integer;
  const float n = shifted - round_to_integer;
  const float r = x - n * 0.693359375f + n * 2.12194440e-4f;

  float polynomial = 1.9875691500e-4f;
  polynomial = polynomial * r + 1.3981999507e-3f;
  polynomial = polynomial * r + 8.3334519073e-3f;
  polynomial = polynomial * r + 4.1665795894e-2f;
  polynomial = polynomial * r + 1.6666665459e-1f;
  polynomial = polynomial * r + 5.0000001201e-1f;
  const float mantissa = r * r * polynomial + r + 1.0f;

  const float power = float_of((bits_of(shifted) - bits_of(round_to_integer) + 127) << 23);
  return x < -87.0f ? 0.0f : mantissa * power;
}

struct Tanh {
  float value;
  float slope;  // 1 - value^2
};

// tanh(x) and its slope for any x. Near 0, where the quotient would cancel, the value is Cephes' tanhf.
FASTFLOW_INLINE Tanh tanh_and_slope(float x) {
  const float magnitude = __builtin_fabsf(x);
  const float t = exponential(-2.0f * magnitude);
  const float inverse = 1.0f / (1.0f + t);
  const float quotient = (1.0f - t) * inverse;

  const float square = x * x;
  float polynomial = -5.70498872745e-3f;
  polynomial = polynomial * square + 2.06390887954e-2f;
  polynomial = polynomial * square - 5.37397155531e-2f;
  polynomial = polynomial * square + 1.33314422036e-1f;
  polynomial = polynomial * square - 3.33332819422e-1f;
  const float series = polynomial * square * x + x;

  const float value = magnitude < 0.625f ? series : __builtin_copysignf(quotient, x);
  return {value, 4.0f * t * inverse * inverse};
}

}  // namespace fastflow
