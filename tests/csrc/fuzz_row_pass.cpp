// Random calls of the row pass on heap memory of exactly the size it may touch, for compilation with sanitizers.
//
//     fuzz_row_pass SEED SMALL LARGE     that many calls with up to 300 and up to 300,000 columns
//
// Every result is compared with the formulas in float64. Ends with 1 at the first that is wrong.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "element.h"
#include "row_pass.h"

using fastflow::BFloat16;

namespace {

constexpr double epsilon = 1.1920929e-7, smallest = 2e-38;
constexpr float infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();

std::mt19937_64 random_bits;

int64_t between(int64_t first, int64_t last) { return std::uniform_int_distribution<int64_t>(first, last)(random_bits); }
bool one_in(int64_t count) { return between(1, count) == 1; }

float random_logit(int64_t odd_one_in) {
  if (odd_one_in && one_in(odd_one_in)) {
    const float odd[] = {nan, infinity, -infinity, -infinity, 0.0f, -0.0f, 1e-42f, 200.0f, -200.0f};
    return odd[between(0, 8)];
  }
  return std::normal_distribution<float>(0.0f, 4.0f)(random_bits);
}

// `count` elements that end where the allocation ends, aligned to their own size and no better.
template <class Element>
class ExactArray {
 public:
  explicit ExactArray(int64_t count) : offset_(between(0, 3)), memory_(new Element[offset_ + count]) {}
  Element *data() { return memory_.get() + offset_; }
  Element &operator[](int64_t index) { return data()[index]; }

 private:
  int64_t offset_;
  std::unique_ptr<Element[]> memory_;
};

struct Call {
  int64_t rows, columns, stride;
  bool has_bias, store, moments, tilt;
  float scale, softcap;
  int threads;
};

Call random_call(int64_t most_columns) {
  const float caps[] = {0.0f, 0.0f, 0.7f, 30.0f};
  const int64_t columns = one_in(20) ? 0 : between(1, most_columns);
  return {between(0, most_columns > 1000 ? 2 : 6),
          columns,
          columns + (one_in(2) ? between(1, 9) : 0),
          one_in(2),
          one_in(2),
          one_in(2),
          one_in(3),
          one_in(2) ? 1.0f : 0.6f,
          caps[between(0, 3)],
          static_cast<int>(between(1, 3))};
}

double capped(double x, const Call &call) { return call.softcap ? call.softcap * std::tanh(x / call.softcap) : x; }

double slope(double x, const Call &call) {
  return call.softcap ? 1.0 / std::pow(std::cosh(x / call.softcap), 2) : 1.0;
}

[[noreturn]] void fail(const char *what, const Call &call, int64_t row, double found, double expected) {
  std::printf("%s of row %lld is %.9g, not %.9g: %lld x %lld, stride %lld, bias %d, store %d, moments %d, tilt %d, "
              "scale %g, softcap %g\n",
              what, static_cast<long long>(row), found, expected, static_cast<long long>(call.rows),
              static_cast<long long>(call.columns), static_cast<long long>(call.stride), call.has_bias, call.store,
              call.moments, call.tilt, call.scale, call.softcap);
  std::exit(1);
}

void compare(const char *what, const Call &call, int64_t row, double found, double expected, double allowed) {
  const bool same = found == expected || (std::isnan(found) && std::isnan(expected));
  if (!same && !(std::fabs(found - expected) <= allowed)) fail(what, call, row, found, expected);
}

template <class Element>
void run(int64_t most_columns, int element) {
  const Call call = random_call(most_columns);
  const int64_t size = call.rows && call.columns ? (call.rows - 1) * call.stride + call.columns : 0;
  const int64_t odd_one_in = one_in(2) ? 0 : between(1, 500);
  ExactArray<Element> logits(size);
  ExactArray<float> bias(call.has_bias ? call.columns : 0), maximum(call.rows), reference(call.rows), sum(call.rows),
      target_logit(call.rows), weighted(call.moments ? call.rows : 0), logit_sum(call.moments ? call.rows : 0),
      constant(call.tilt ? call.rows : 0), factor(call.tilt ? call.rows : 0);
  ExactArray<int64_t> target(call.rows);
  for (int64_t i = 0; i < size; i++) logits[i] = fastflow::narrowed<Element>(random_logit(odd_one_in));
  for (int64_t v = 0; v < call.columns && call.has_bias; v++) bias[v] = random_logit(0);
  const float *bias_or_none = call.has_bias ? bias.data() : nullptr;
  Element *logits_or_none = call.columns ? logits.data() : nullptr;
  const std::vector<Element> before(logits.data(), logits.data() + size);
  const auto total = [&](int64_t row, int64_t v) {
    const float logit = fastflow::widened(before[row * call.stride + v]);
    return call.has_bias ? logit + bias[v] : logit;
  };

  fastflow_row_maximum(logits_or_none, element, call.rows, call.columns, call.stride, bias_or_none, maximum.data(),
                       call.threads);
  for (int64_t row = 0; row < call.rows; row++) {
    float largest = -infinity;
    for (int64_t v = 0; v < call.columns; v++)
      if (total(row, v) > largest || std::isnan(total(row, v))) largest = total(row, v);
    compare("maximum", call, row, maximum[row], largest, 0.0);
    reference[row] = static_cast<float>(capped(largest, call));
    target[row] = one_in(4) ? between(-3, call.columns + 3) : between(0, call.columns);
    if (one_in(50)) target[row] = one_in(2) ? std::numeric_limits<int64_t>::min() : std::numeric_limits<int64_t>::max();
    target_logit[row] = 12345.0f;
    if (call.tilt) constant[row] = random_logit(0), factor[row] = random_logit(0);
  }

  const fastflow_row_inputs inputs{reference.data(), target.data(), call.tilt ? constant.data() : nullptr,
                                   call.tilt ? factor.data() : nullptr};
  const fastflow_row_outputs outputs{sum.data(), target_logit.data(), call.moments ? weighted.data() : nullptr,
                                     call.moments ? logit_sum.data() : nullptr};
  fastflow_row_exponentials(logits_or_none, element, call.rows, call.columns, call.stride, bias_or_none, call.scale,
                            call.softcap, call.store, &inputs, &outputs, call.threads);
  const double half_step = element == FASTFLOW_BFLOAT16 ? 1.0 / 256 : 0.0;
  for (int64_t row = 0; row < call.rows; row++) {
    double expected_sum = 0.0, sum_allowed = 0.0, expected_weighted = 0.0, weighted_allowed = 0.0;
    double expected_logits = 0.0, logits_allowed = 0.0;
    const bool is_here = target[row] >= 0 && target[row] < call.columns;
    for (int64_t v = 0; v < call.columns; v++) {
      const double logit = total(row, v), z = capped(logit, call);
      const double above = (z - reference[row]) * call.scale, exponential = std::exp(above);
      const double exponent = above < -1000.0 ? -1000.0 : above > 0.0 ? 0.0 : above;  // not -inf, for a product with 0
      const double rounding = exponential ? epsilon * (4 + 3 * (std::fabs(z) + std::fabs(reference[row]))) : 0.0;
      const bool is_target = v == target[row];
      if (!is_target) {
        expected_sum += exponential;
        sum_allowed += exponential * rounding + smallest;
        expected_weighted += exponential * exponent;
        weighted_allowed += exponential * (rounding + 2 * epsilon) * (1 - exponent) + 200 * smallest;
      }
      expected_logits += z;
      logits_allowed += 4 * epsilon * std::fabs(z) + smallest;
      const double line = call.tilt ? constant[row] + factor[row] * exponent : 1.0;
      const double size = call.tilt ? std::fabs(constant[row]) + std::fabs(factor[row]) * (1 - exponent) : 1.0;
      const double stored = is_target ? 0.0 : exponential * slope(logit, call) * line;
      const double of_argument = call.softcap ? epsilon * 4 * std::fabs(logit / call.softcap) : 0.0;
      const Element &after = logits[row * call.stride + v];
      if (call.store)
        compare("entry", call, row, fastflow::widened(after), stored,
                is_target ? smallest
                          : exponential * slope(logit, call) * size * ((call.tilt ? 2 : 1) * rounding + of_argument) +
                                half_step * std::fabs(stored) +
                                (call.tilt ? 500 : 1) * smallest);
    }
    compare("sum", call, row, sum[row], expected_sum, sum_allowed);
    if (call.moments) compare("weighted sum", call, row, weighted[row], expected_weighted, weighted_allowed);
    if (call.moments) compare("sum of logits", call, row, logit_sum[row], expected_logits, logits_allowed);
    const double expected_target = is_here ? capped(total(row, target[row]), call) : 12345.0;
    const double target_allowed = 3 * epsilon * std::fabs(expected_target) + smallest;
    compare("target's logit", call, row, target_logit[row], expected_target, target_allowed);
  }
  for (int64_t i = 0; i < size; i++) {
    const bool is_between_rows = i % call.stride >= call.columns;
    if ((!call.store || is_between_rows) && std::memcmp(&logits[i], &before[i], sizeof(Element)) != 0)
      fail("an entry that must stay", call, i / call.stride, fastflow::widened(logits[i]), fastflow::widened(before[i]));
  }
}

void run_any(int64_t most_columns) {
  if (one_in(2))
    run<float>(most_columns, FASTFLOW_FLOAT32);
  else
    run<BFloat16>(most_columns, FASTFLOW_BFLOAT16);
}

}  // namespace

int main(int argc, char **argv) {
  if (argc != 4) return std::puts("usage: fuzz_row_pass SEED SMALL LARGE"), 2;
  random_bits.seed(std::strtoull(argv[1], nullptr, 10));
  for (long call = std::atol(argv[2]); call > 0; call--) run_any(300);
  for (long call = std::atol(argv[3]); call > 0; call--) run_any(300000);
  std::printf("%s: all calls agree\n", fastflow_instruction_set());
}
