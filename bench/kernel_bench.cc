// Times the CPU back end's products and attention on one shape and states them against the machine's own roofs, measured
// in the same run. Each result is checked against the reference back end on a sample before it is timed.
//   kernel_bench [isa] [threads]
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "backend/cpu/cpu_backend.h"
#include "base/clock.h"
#include "base/random.h"
#include "tensor/quant_blocks.h"

namespace quipu {
namespace {

std::vector<float> normals(int64_t count, uint64_t seed) {
  RandomStream random(seed, 1);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& v : values) v = static_cast<float>(random.normal());
  return values;
}

// Median seconds of `repeats` runs of body, after one warm-up.
template <class Body>
double median_seconds(int repeats, const Body& body) {
  body();
  std::vector<double> seconds;
  for (int i = 0; i < repeats; ++i) {
    const double start = monotonic_seconds();
    body();
    seconds.push_back(monotonic_seconds() - start);
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds[seconds.size() / 2];
}

void bench_product(Backend& backend, DType dtype, int64_t rows, int64_t cols, int64_t n) {
  // One row of weights, repeated: the speed does not depend on the numbers.
  const auto row = normals(cols, 1);
  const int64_t stride = row_bytes(dtype, cols);
  std::vector<std::byte> bytes(static_cast<size_t>(stride * rows));
  quantise_row(bytes.data(), dtype, row.data(), cols);
  for (int64_t r = 1; r < rows; ++r) std::memcpy(bytes.data() + r * stride, bytes.data(), static_cast<size_t>(stride));
  // Enough copies that a one-row product reads from memory, not from a cache.
  const int64_t copies = n == 1 ? std::max<int64_t>(1, (int64_t{1} << 30) / (stride * rows)) : 1;
  std::vector<std::unique_ptr<PackedMatrix>> packed;
  for (int64_t i = 0; i < copies; ++i) packed.push_back(backend.pack({dtype, rows, cols, bytes}).value());
  const auto x = normals(n * cols, 2);
  std::vector<float> y(static_cast<size_t>(n * rows));
  const double seconds = median_seconds(n == 1 ? 5 : 9, [&] {
    for (const auto& w : packed) backend.matmul({y.data(), n, rows}, *w, {x.data(), n, cols});
  });
  const double operations = 2.0 * static_cast<double>(copies * rows * cols * n);
  const double traffic = static_cast<double>(copies) * static_cast<double>(packed[0]->bytes());
  std::printf("%-7s [%lld, %lld] n %4lld  %8.1f GOP/s  %6.2f GB/s\n", std::string(dtype_name(dtype)).c_str(),
              static_cast<long long>(rows), static_cast<long long>(cols), static_cast<long long>(n), operations / seconds * 1e-9,
              traffic / seconds * 1e-9);
}

void bench_attention(Backend& backend, DType dtype, int64_t heads, int64_t kv_heads, int64_t dim, int64_t context, int64_t n) {
  const int64_t pages = context / kPageRows;
  auto memory = Buffer::allocate(static_cast<size_t>(2 * pages * kv_head_page_bytes(dtype, dim) * kv_heads)).value();
  std::vector<std::byte*> keys, values;
  for (int64_t p = 0; p < pages; ++p) {
    keys.push_back(memory.data() + 2 * p * kv_head_page_bytes(dtype, dim) * kv_heads);
    values.push_back(keys.back() + kv_head_page_bytes(dtype, dim) * kv_heads);
  }
  const KvCacheView view{.dtype = dtype, .kv_heads = kv_heads, .key_dim = dim, .value_dim = dim, .key_pages = keys, .value_pages = values};
  const auto kv = normals(512 * kv_heads * dim, 3);
  for (int64_t at = 0; at < context; at += 512) {
    backend.store_kv(view, at, {kv.data(), 512, kv_heads * dim}, {kv.data(), 512, kv_heads * dim});
  }
  const auto q = normals(n * heads * dim, 4);
  std::vector<float> out(q.size());
  const AttendSlice slice{.row_begin = 0, .rows = n, .first_key = context - n, .cache = view};
  const double seconds = median_seconds(7, [&] {
    backend.attend({out.data(), n, heads * dim}, {q.data(), n, heads * dim}, {&slice, 1}, {.heads = heads, .scale = 0.125f});
  });
  std::printf("attend %-5s %lld/%lld x %lld  context %6lld  n %4lld  %8.3f ms  %7.1f GFLOP/s  %6.2f GB/s\n",
              std::string(dtype_name(dtype)).c_str(), static_cast<long long>(heads), static_cast<long long>(kv_heads),
              static_cast<long long>(dim), static_cast<long long>(context), static_cast<long long>(n), seconds * 1e3,
              4.0 * static_cast<double>(heads * dim * n) * (static_cast<double>(context) - static_cast<double>(n) / 2) / seconds * 1e-9,
              static_cast<double>(2 * pages * kv_head_page_bytes(dtype, dim) * kv_heads) / seconds * 1e-9);
}

}  // namespace
}  // namespace quipu

int main(int argc, char** argv) {
  using namespace quipu;
  const auto isa = argc > 1 ? isa_from_name(argv[1]) : chosen_isa();
  if (!isa.ok()) {
    std::fprintf(stderr, "%s\n", isa.error().message.c_str());
    return 2;
  }
  auto backend = make_cpu_backend({.threads = argc > 2 ? std::atoi(argv[2]) : 0, .isa = *isa});
  if (!backend.ok()) {
    std::fprintf(stderr, "%s\n", backend.error().message.c_str());
    return 2;
  }
  Backend& be = **backend;
  std::printf("%s, %d threads\n", be.name().c_str(), be.threads());
  for (const DType dtype : {DType::kQ8_0, DType::kQ4_0, DType::kQ4_1, DType::kQ4_K, DType::kQ6_K, DType::kBF16}) {
    for (const int64_t n : {1, 12, 512}) bench_product(be, dtype, 2048, 2048, n);
    bench_product(be, dtype, 2048, 8192, 512);
  }
  for (const DType dtype : {DType::kF16, DType::kQ8_0}) {
    for (const int64_t context : {4096, 32768}) bench_attention(be, dtype, 32, 8, 64, context, 1);
    bench_attention(be, dtype, 32, 8, 64, 8192, 512);
  }
  return 0;
}
