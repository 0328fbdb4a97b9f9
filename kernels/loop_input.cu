// out[s] = a * x[s] + b * y[s-1], without the second part on the first token of a document. Every
// number is read and written once.
#include "loop_input.h"

#include "launch.cuh"
#include "tile.cuh"

namespace loopcoder {
namespace {

constexpr int THREADS = 256;

template <typename T>
__device__ uint4 mixed(const uint4& x, float a, const uint4& y, float b) {
  uint32_t left[4], right[4];
  unpack_words(left, x);
  unpack_words(right, y);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 l = Half<T>::unpack(left[i]), r = Half<T>::unpack(right[i]);
    left[i] = Half<T>::pack(a * l.x + b * r.x, a * l.y + b * r.y);
  }
  return make_uint4(left[0], left[1], left[2], left[3]);
}

// A lane has 8 numbers of the width: `piece` of position `row` = s * batch + b.
template <typename T>
__global__ void __launch_bounds__(THREADS) loop_forward(const LoopInput p) {
  const int64_t pieces = p.width / 8, rows = p.seq * p.batch;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x, row = i / pieces;
  if (row >= rows) return;
  const bool resets = p.first_token[row / p.batch * p.first_seq + row % p.batch * p.first_batch];
  const uint4 x = __ldg(static_cast<const uint4*>(p.x) + i);
  uint4 y = make_uint4(0, 0, 0, 0);
  if (!resets) {
    const int64_t shifted = i - p.batch * pieces;
    if (shifted >= 0)
      y = __ldg(static_cast<const uint4*>(p.y) + shifted);
    else if (p.before)
      y = __ldg(static_cast<const uint4*>(p.before) + i);
  }
  static_cast<uint4*>(p.out)[i] = mixed<T>(x, p.a, y, p.b);
}

template <typename T>
__global__ void __launch_bounds__(THREADS) loop_backward(const LoopInput p) {
  const int64_t pieces = p.width / 8, rows = p.seq * p.batch;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x, row = i / pieces;
  if (row >= rows) return;
  const uint4 zero = make_uint4(0, 0, 0, 0);
  const uint4* const d_out = static_cast<const uint4*>(p.x);
  static_cast<uint4*>(p.out)[i] = mixed<T>(__ldg(d_out + i), p.a, zero, 0.0f);
  const auto resets = [&](int64_t at) {
    return p.first_token[at / p.batch * p.first_seq + at % p.batch * p.first_batch];
  };
  if (p.out3 && row < p.batch)
    static_cast<uint4*>(p.out3)[i] =
        resets(row) ? zero : mixed<T>(__ldg(d_out + i), p.b, zero, 0.0f);
  const int64_t next = row + p.batch;
  uint4 y = zero;
  if (next < rows && !resets(next))
    y = mixed<T>(__ldg(d_out + i + p.batch * pieces), p.b, zero, 0.0f);
  static_cast<uint4*>(p.out2)[i] = y;
}

template <typename Kernel>
cudaError_t launch(Kernel bf16, Kernel fp16, const LoopInput& p, cudaStream_t stream) {
  const auto blocks =
      static_cast<unsigned>((p.seq * p.batch * (p.width / 8) + THREADS - 1) / THREADS);
  return start(p.is_bf16 ? bf16 : fp16, blocks, THREADS, 0, stream, p);
}

}  // namespace

cudaError_t loop_input_forward(const LoopInput& p, cudaStream_t stream) {
  return launch(loop_forward<__nv_bfloat16>, loop_forward<__half>, p, stream);
}

cudaError_t loop_input_backward(const LoopInput& p, cudaStream_t stream) {
  return launch(loop_backward<__nv_bfloat16>, loop_backward<__half>, p, stream);
}

}  // namespace loopcoder
