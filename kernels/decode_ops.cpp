// The kernels for decoding as PyTorch operators; shapes and meanings are documented at their Python
// counterparts, loopcoder/ops/decode.py. They are in bf16 and have no gradients.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <optional>

#include "checks.h"
#include "decode_attention.h"
#include "decode_gemv.h"

namespace {

using namespace loopcoder::checks;
using at::Tensor;
using loopcoder::DecodeAttention;
using loopcoder::Kept;

constexpr int64_t MAX_INT = 0x7fffffff;

void check_bf16(const Tensor& x, const char* name) {
  TORCH_CHECK(x.scalar_type() == at::kBFloat16, name, " is ", x.scalar_type(), ", not bf16");
}

Tensor decode_linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& norm,
                     double eps, bool swiglu, const std::optional<Tensor>& added, bool to_float) {
  check_bf16(x, "x");
  check_device(x, "x", x);
  TORCH_CHECK(x.dim() == 2 && weight.dim() == 2, "x and the weight are matrices");
  const int64_t rows = x.size(0), width = x.size(1), columns = weight.size(0) / (swiglu ? 2 : 1);
  TORCH_CHECK(rows >= 1 && rows <= loopcoder::GEMV_MAX_ROWS, "x has ", rows,
              " rows, the kernel takes 1 to ", loopcoder::GEMV_MAX_ROWS);
  TORCH_CHECK(width > 0 && width % 8 == 0 && width < (1 << 24), "the width ", width,
              " is no multiple of 8 below 2^24");
  TORCH_CHECK(weight.size(0) > 0 && weight.size(0) < (1 << 28) && columns * (swiglu ? 2 : 1) == weight.size(0),
              "the weight has ", weight.size(0), " rows");
  TORCH_CHECK(x.stride(1) == 1 && x.stride(0) % 8 == 0 && is_aligned(x),
              "x has rows that do not start at multiples of 16 bytes: strides ", x.strides());
  check_like(weight, "weight", x, {weight.size(0), width});
  loopcoder::DecodeGemv args{};
  args.rows = rows, args.columns = columns, args.width = width;
  args.x = x.const_data_ptr(), args.x_row = x.stride(0), args.weight = weight.const_data_ptr();
  args.eps = eps, args.swiglu = swiglu, args.is_float = to_float;
  if (norm) {
    check_like(*norm, "norm", x, {width});
    args.norm = norm->const_data_ptr();
  }
  if (added) {
    check_half(*added, "added", x);
    TORCH_CHECK(added->dim() == 2 && added->size(0) == rows && added->size(1) == columns &&
                    (columns == 1 || added->stride(1) == 1),
                "added has the shape ", added->sizes(), " and the strides ", added->strides(),
                ", not that of the result");
    args.added = added->const_data_ptr(), args.added_row = added->stride(0);
  }
  const c10::cuda::CUDAGuard on(x.device());
  Tensor out = at::empty({rows, columns}, x.options().dtype(to_float ? at::kFloat : at::kBFloat16));
  args.out = out.mutable_data_ptr();
  C10_CUDA_CHECK(loopcoder::decode_gemv(args, c10::cuda::getCurrentCUDAStream()));
  return out;
}

// A cache [places, (loops,) kv_heads, tokens, head_dim].
Kept kept_of(const Tensor& k, const Tensor& v, const char* name, const Tensor& q, int64_t loops) {
  check_half(k, name, q), check_half(v, name, q);
  const int64_t head_dim = k.size(-1), last = k.dim() - 1;
  TORCH_CHECK(k.sizes() == v.sizes() && k.strides() == v.strides(), name,
              ": keys and values have other shapes or strides");
  TORCH_CHECK(k.stride(last) == 1 && k.stride(last - 1) == head_dim && k.stride(0) % 8 == 0 &&
                  k.stride(1) % 8 == 0 && k.stride(last - 2) % 8 == 0 && is_aligned(k) &&
                  is_aligned(v),
              name, " has tokens that are no neighbours: strides ", k.strides());
  TORCH_CHECK(k.size(last - 1) > 0 && k.size(last - 1) < MAX_INT, name, " has no room");
  const bool has_loops = k.dim() == 5;
  TORCH_CHECK(!has_loops || k.size(1) == loops, name, " has ", k.size(1), " loops, not ", loops);
  return {k.data_ptr(), v.data_ptr(), k.stride(0), has_loops ? k.stride(1) : 0, k.stride(last - 2),
          static_cast<int>(k.size(last - 1))};
}

// What rotation and attention share; the number of query heads is known from the first tensor.
DecodeAttention arguments(const Tensor& first, int64_t heads, const Tensor& k, const Tensor& v,
                          const std::optional<Tensor>& ring_k, const std::optional<Tensor>& ring_v,
                          const Tensor& places, const Tensor& positions) {
  check_bf16(first, "the first tensor");
  check_like(first, "the first tensor", first, first.sizes());
  TORCH_CHECK(k.dim() == 4, "the cache is [places, kv_heads, tokens, head_dim]");
  DecodeAttention args{};
  args.batch = first.size(0), args.loops = first.size(1), args.heads = heads;
  args.kv_heads = k.size(1), args.head_dim = check_head_dim(k.size(3));
  TORCH_CHECK(heads > 0 && heads % k.size(1) == 0, heads, " query heads over ", k.size(1));
  TORCH_CHECK(first.size(0) <= 65535 && first.size(1) >= 1 && heads * first.size(1) <= 65535,
              "more places, loops or heads than the kernels take");
  args.all = kept_of(k, v, "the cache", first, 1);
  if (args.loops > 1) {
    TORCH_CHECK(ring_k && ring_v && ring_k->dim() == 5 && ring_k->size(0) == k.size(0) &&
                    ring_k->size(2) == k.size(1) && ring_k->size(4) == k.size(3),
                "rings are [places, loops - 1, kv_heads, tokens, head_dim]");
    args.ring = kept_of(*ring_k, *ring_v, "the rings", first, args.loops - 1);
  }
  for (const Tensor* index : {&places, &positions}) {
    check_device(*index, "places or positions", first);
    TORCH_CHECK(index->scalar_type() == at::kLong && index->is_contiguous() &&
                    index->dim() == 1 && index->size(0) == first.size(0),
                "places and positions are [batch], int64, contiguous");
  }
  args.places = places.const_data_ptr<int64_t>();
  args.positions = positions.const_data_ptr<int64_t>();
  return args;
}

Tensor decode_rotate(const Tensor& qkv, const Tensor& cos, const Tensor& sin, const Tensor& k,
                     const Tensor& v, const std::optional<Tensor>& ring_k,
                     const std::optional<Tensor>& ring_v, const Tensor& places,
                     const Tensor& positions) {
  TORCH_CHECK(qkv.dim() == 3 && k.dim() == 4, "qkv is [batch, loops, ...]");
  const int64_t head_dim = k.size(3), heads = qkv.size(2) / head_dim - 2 * k.size(1);
  TORCH_CHECK(qkv.size(2) % head_dim == 0, "qkv has ", qkv.size(2), " numbers, heads of ", head_dim);
  auto args = arguments(qkv, heads, k, v, ring_k, ring_v, places, positions);
  for (const Tensor* angle : {&cos, &sin}) {
    check_device(*angle, "cos or sin", qkv);
    TORCH_CHECK(angle->scalar_type() == at::kFloat && angle->is_contiguous() &&
                    angle->numel() == qkv.size(0) * head_dim,
                "cos and sin are [batch, head_dim], fp32, contiguous");
  }
  const c10::cuda::CUDAGuard on(qkv.device());
  Tensor q = at::empty({qkv.size(0), qkv.size(1), heads, head_dim}, qkv.options());
  if (q.numel() == 0) return q;
  args.qkv = qkv.const_data_ptr(), args.q = q.mutable_data_ptr();
  args.cos = cos.const_data_ptr<float>(), args.sin = sin.const_data_ptr<float>();
  C10_CUDA_CHECK(loopcoder::decode_rotate(args, c10::cuda::getCurrentCUDAStream()));
  return q;
}

Tensor decode_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                        const std::optional<Tensor>& ring_k, const std::optional<Tensor>& ring_v,
                        const Tensor& places, const Tensor& positions,
                        const std::optional<Tensor>& gate, double scale) {
  TORCH_CHECK(q.dim() == 4, "q is [batch, loops, heads, head_dim]");
  auto args = arguments(q, q.size(2), k, v, ring_k, ring_v, places, positions);
  TORCH_CHECK(q.size(3) == k.size(3), "heads of ", q.size(3), " over heads of ", k.size(3));
  if (args.loops > 1) {
    TORCH_CHECK(gate, "later loops need the gate's logits");
    check_half(*gate, "gate", q);
    TORCH_CHECK(gate->dim() == 3 && gate->size(0) == q.size(0) && gate->size(1) == q.size(1) - 1 &&
                    gate->size(2) == q.size(2) && (gate->size(2) == 1 || gate->stride(2) == 1),
                "gate is [batch, loops - 1, heads]");
    args.gate = gate->const_data_ptr();
    args.gate_batch = gate->stride(0), args.gate_loop = gate->stride(1);
  }
  const c10::cuda::CUDAGuard on(q.device());
  Tensor out = at::empty(q.sizes(), q.options());
  if (q.numel() == 0) return out;
  C10_CUDA_CHECK(loopcoder::decode_splits(args, &args.splits));
  const int64_t parts = q.size(0) * q.size(1) * q.size(2) * (args.splits + 1);
  Tensor sums = at::empty({parts, q.size(3)}, q.options().dtype(at::kFloat));
  Tensor stats = at::empty({parts, 2}, sums.options());
  args.scale = scale, args.q = q.data_ptr(), args.out = out.mutable_data_ptr();
  args.sums = sums.mutable_data_ptr<float>(), args.stats = stats.mutable_data_ptr<float>();
  C10_CUDA_CHECK(loopcoder::decode_attention(args, c10::cuda::getCurrentCUDAStream()));
  return out;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(loopcoder, m) {
  m.def(
      "decode_linear(Tensor x, Tensor weight, Tensor? norm, float eps, bool swiglu, Tensor? added, "
      "bool to_float) -> Tensor");
  m.def(
      "decode_rotate(Tensor qkv, Tensor cos, Tensor sin, Tensor(a!) k, Tensor(b!) v, "
      "Tensor(c!)? ring_k, Tensor(d!)? ring_v, Tensor places, Tensor positions) -> Tensor");
  m.def(
      "decode_attention(Tensor q, Tensor k, Tensor v, Tensor? ring_k, Tensor? ring_v, "
      "Tensor places, Tensor positions, Tensor? gate, float scale) -> Tensor");
}

TORCH_LIBRARY_IMPL(loopcoder, CUDA, m) {
  m.impl("decode_linear", &decode_linear);
  m.impl("decode_rotate", &decode_rotate);
  m.impl("decode_attention", &decode_attention);
}
