// Rows of a product hidden @ weight^T: their statistics, and the exponentials that the gradient needs.
//
// Per row, with logits z = softcap(product + bias) / temperature and target t:
//
//     target_logit   z_t, or `absent` where t is no column; left out where the caller has it from elsewhere
//     reference      the largest logit; nan is left out
//     total          sum of exp(z - reference) over the entries other than t
//     exponentials   exp(z - reference) times the soft-cap's slope at z; 0 at t
//
// Entries of -inf count as 0; nan spreads to the total.
#include "row_pass.h"

#include <type_traits>

#include "resident_kernel.h"
#include "row_plan.h"
#include "streaming_kernel.h"

namespace {

constexpr int abi_version = 2;
constexpr int invalid_value = 1; // cudaErrorInvalidValue
constexpr int64_t most_columns = 1 << 28; // sizes of slices are counted in int
constexpr int64_t most_grid_blocks = (1LL << 31) - 1;

enum EntryType : int { nothing = 0, float32 = 1, narrow = 2 }; // part of the ABI

template <int N, class T> bool is_aligned(const void *entries, int64_t stride) {
    return reinterpret_cast<uintptr_t>(entries) % alignof(Pack<T, N>) == 0 && stride % N == 0;
}

template <int N, class Product, class Stored> bool packs_fit(const RowPass &pass) {
    bool fit = is_aligned<N, Product>(pass.products, pass.products_stride) && is_aligned<N, float>(pass.logit.bias, 0);
    if constexpr (!std::is_void_v<Stored>) {
        fit = fit && is_aligned<N, Stored>(pass.exponentials, pass.exponentials_stride);
    }
    return fit;
}

template <int N, bool Softcapped, class Product, class Stored>
int launch(RowPass pass, const RowPlan &plan, int64_t rows, void *stream) {
    auto kernel = streaming_kernel<N, Softcapped, Product, Stored>;
    if constexpr (!std::is_void_v<Stored>) {
        if (plan.is_resident) kernel = resident_kernel<N, Softcapped, Product, Stored>;
    }
    pass.slice = plan.slice;
    pass.cluster = plan.cluster;
    if (rows * pass.cluster > most_grid_blocks) return invalid_value;
    return device::launch(kernel, {rows * pass.cluster, pass.cluster, plan.shared_bytes}, stream, pass);
}

template <class Product, class Stored>
int launch(const RowPass &pass, const RowPlan &plan, int64_t rows, void *stream) {
    constexpr int most = widest_move / sizeof(Product);
    const bool is_capped = pass.logit.cap > 0.0f;
    if (packs_fit<most, Product, Stored>(pass)) {
        return is_capped ? launch<most, true, Product, Stored>(pass, plan, rows, stream)
                         : launch<most, false, Product, Stored>(pass, plan, rows, stream);
    }
    return is_capped ? launch<1, true, Product, Stored>(pass, plan, rows, stream)
                     : launch<1, false, Product, Stored>(pass, plan, rows, stream);
}

} // namespace

#define EXPORTED extern "C" __attribute__((visibility("default")))

// Raised with every change to the functions below.
EXPORTED int fastflow_cuda_abi_version() { return abi_version; }

// What an error means that a launcher returned.
EXPORTED const char *fastflow_cuda_error(int error) { return device::description(error); }

// On the current device. Row strides are in entries; rows are dense. bias and target_logit may be null, softcap 0 for
// none. Products are float32 or narrow; exponentials have the type that store_type names, which for narrow products is
// narrow too, and may be `products`. Returns 0, or an error; waits for nothing.
EXPORTED int fastflow_cuda_row_pass(const void *products, int64_t products_stride, int product_type, const float *bias,
                                    const int64_t *targets, float *target_logit, float *reference, float *total,
                                    void *exponentials, int64_t exponentials_stride, int store_type, int64_t rows,
                                    int64_t vocabulary, float temperature, float softcap, float absent, void *stream) {
    if (rows < 0 || vocabulary < 1 || vocabulary > most_columns) return invalid_value;
    if (rows == 0) return 0;
    device::Limits limits = {};
    if (const int error = device::limits(&limits)) return error;

    RowPass pass = {};
    pass.products = products;
    pass.products_stride = products_stride;
    pass.targets = targets;
    pass.target_logit = target_logit;
    pass.reference = reference;
    pass.total = total;
    pass.exponentials = exponentials;
    pass.exponentials_stride = exponentials_stride;
    pass.vocabulary = static_cast<int>(vocabulary);
    pass.absent = absent;
    pass.logit = {bias, 1.0f / temperature, softcap / temperature, temperature / softcap, -2.0f / softcap};

    const RowPlan plan = store_type == nothing ? streaming(pass.vocabulary) : plan_row(pass.vocabulary, limits);
    if (product_type == narrow) {
        switch (store_type) {
        case nothing: return launch<device::bfloat16, void>(pass, plan, rows, stream);
        case narrow: return launch<device::bfloat16, device::bfloat16>(pass, plan, rows, stream);
        default: return invalid_value;
        }
    }
    if (product_type != float32) return invalid_value;
    switch (store_type) {
    case nothing: return launch<float, void>(pass, plan, rows, stream);
    case float32: return launch<float, float>(pass, plan, rows, stream);
    case narrow: return launch<float, device::bfloat16>(pass, plan, rows, stream);
    default: return invalid_value;
    }
}
