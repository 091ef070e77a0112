// Runs the row pass on a CPU: problems from standard input, answers to standard output, one behind the other.
//
// A problem is the struct below, then products ((R - 1) * stride + V entries), bias (V floats, if any), targets (R). An
// answer: plan, error, target_logit (if wanted), reference and total (R each), then the exponentials' memory with their strides.
// All arrays are allocated to the byte, so that AddressSanitizer sees an access beside them.
#include <cstdio>
#include <cstring>
#include <vector>

#include "row_pass.cu"

namespace {

struct Problem {
    int64_t rows, vocabulary, products_stride, exponentials_stride, product_type, store_type, is_in_place, has_bias;
    int64_t takes_target;
    int64_t offset, bias_offset; // entries by which products and exponentials, and bias, miss an aligned address
    int64_t block_bytes, largest_cluster; // of the device that is pretended
    double temperature, softcap, absent;
};

template <class T> class Array {
  public:
    Array(int64_t count, int64_t offset = 0)
        : memory_(malloc((count + offset) * sizeof(T))), count_(count), offset_(offset) {}
    Array(const Array &) = delete;
    ~Array() { free(memory_); }

    T *data() { return static_cast<T *>(memory_) + offset_; }
    void fill(unsigned char byte) { memset(data(), byte, count_ * sizeof(T)); }
    bool read() { return fread(data(), sizeof(T), count_, stdin) == static_cast<size_t>(count_); }
    void write() { fwrite(data(), sizeof(T), count_, stdout); }

  private:
    void *memory_;
    int64_t count_, offset_;
};

template <class Product, class Stored> void solve(const Problem &problem) {
    const auto extent = [&](int64_t stride) { return (problem.rows - 1) * stride + problem.vocabulary; };
    Array<Product> products(extent(problem.products_stride), problem.offset);
    Array<float> bias(problem.has_bias ? problem.vocabulary : 0, problem.bias_offset);
    Array<int64_t> targets(problem.rows);
    if (!products.read() || !bias.read() || !targets.read()) device::host::refuse("a problem is cut short");
    Array<float> target_logit(problem.takes_target ? problem.rows : 0), reference(problem.rows), total(problem.rows);
    const bool has_own = problem.store_type != nothing && !problem.is_in_place;
    Array<Stored> exponentials(has_own ? extent(problem.exponentials_stride) : 0, problem.offset);
    exponentials.fill(0x42);
    void *into = nullptr;
    if (has_own) into = exponentials.data();
    if (problem.is_in_place) into = products.data();

    const int block_bytes = problem.block_bytes;
    device::host_limits = {block_bytes, block_bytes, 0, static_cast<int>(problem.largest_cluster)};
    const RowPlan plan = problem.store_type == nothing ? streaming(problem.vocabulary)
                                                       : plan_row(problem.vocabulary, device::host_limits);
    int64_t words[] = {plan.is_resident ? plan.cluster : 0, 0};
    words[1] = fastflow_cuda_row_pass(
        products.data(), problem.products_stride, problem.product_type, problem.has_bias ? bias.data() : nullptr, targets.data(),
        problem.takes_target ? target_logit.data() : nullptr, reference.data(), total.data(), into, problem.exponentials_stride, problem.store_type,
        problem.rows, problem.vocabulary, problem.temperature, problem.softcap, problem.absent, nullptr);
    fwrite(words, sizeof(words), 1, stdout);
    target_logit.write();
    reference.write();
    total.write();
    if (problem.is_in_place) products.write();
    exponentials.write();
}

} // namespace

int main() {
    for (Problem problem; fread(&problem, sizeof(problem), 1, stdin) == 1;) {
        if (problem.product_type == narrow) solve<device::bfloat16, device::bfloat16>(problem);
        else if (problem.store_type == narrow) solve<float, device::bfloat16>(problem);
        else solve<float, float>(problem);
    }
}
