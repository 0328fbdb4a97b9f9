// The kernels as PyTorch operators: torch.ops.loopcoder.*, after torch.ops.load_library.
// Shapes and meanings are documented at their Python counterparts, loopcoder/ops/kernels.py.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <optional>
#include <tuple>

#include "checks.h"
#include "gate_logits.h"
#include "gated_window.h"
#include "loop_input.h"

namespace {

using namespace loopcoder::checks;
using at::Tensor;
using loopcoder::MAX_WINDOW;
using loopcoder::View;

// Of a grid in its second and third dimension: blocks of 64 positions, and rows.
constexpr int64_t MAX_BLOCKS = 65535, MAX_SEQUENCE = 64 * MAX_BLOCKS;

// A stride, 0 in a dimension of size 1: PyTorch leaves any number there, and nothing depends on it.
int64_t stride_of(const Tensor& x, int dimension) {
  return x.size(dimension) == 1 ? 0 : x.stride(dimension);
}

// A tensor [seq, batch, heads, head_dim] of the first one's type, read 16 bytes at a time.
View view_of(const Tensor& x, const char* name, const Tensor& first, at::IntArrayRef shape) {
  check_half(x, name, first);
  TORCH_CHECK(x.sizes() == shape, name, " has the shape ", x.sizes(), ", not ", shape);
  const View view{x.data_ptr(), stride_of(x, 0), stride_of(x, 1), stride_of(x, 2)};
  TORCH_CHECK(x.stride(3) == 1 && view.seq % 8 == 0 && view.batch % 8 == 0 &&
                  view.head % 8 == 0 && is_aligned(x),
              name, " has rows that do not start at multiples of 16 bytes: strides ", x.strides());
  return view;
}

View gate_view(const Tensor& gate, const Tensor& q) {
  check_half(gate, "gate", q);
  TORCH_CHECK(gate.sizes() == q.sizes().slice(0, 3), "gate has the shape ", gate.sizes(),
              ", q has ", q.sizes());
  return {gate.data_ptr(), gate.stride(0), gate.stride(1), gate.stride(2)};
}

loopcoder::GatedWindow arguments(const Tensor& q, const Tensor& k, const Tensor& v,
                                 const Tensor& gate, const std::optional<Tensor>& start,
                                 int64_t window, double scale) {
  TORCH_CHECK(q.dim() == 4 && k.dim() == 4, "q and k are [seq, batch, heads, head_dim]");
  TORCH_CHECK(window >= 0 && window <= MAX_WINDOW, "window is ", window, ", the kernel takes 0 to ",
              MAX_WINDOW);
  TORCH_CHECK(k.size(2) > 0 && q.size(2) % k.size(2) == 0, q.size(2), " query heads over ",
              k.size(2), " key heads");
  TORCH_CHECK(q.size(0) <= MAX_SEQUENCE, "q has ", q.size(0), " positions, the kernels take ",
              MAX_SEQUENCE);
  TORCH_CHECK(q.size(1) <= MAX_BLOCKS, "q has ", q.size(1), " rows, the kernels take ", MAX_BLOCKS);
  const int64_t kv_shape[] = {q.size(0), q.size(1), k.size(2), q.size(3)};
  loopcoder::GatedWindow args{};
  args.seq = q.size(0), args.batch = q.size(1), args.heads = q.size(2), args.kv_heads = k.size(2);
  args.head_dim = check_head_dim(q.size(3)), args.window = window, args.scale = scale;
  args.is_bf16 = is_bf16(q, "q");
  args.q = view_of(q, "q", q, q.sizes());
  args.k = view_of(k, "k", q, kv_shape);
  args.v = view_of(v, "v", q, kv_shape);
  args.gate = gate_view(gate, q);
  if (start) {
    check_device(*start, "start", q);
    TORCH_CHECK(start->scalar_type() == at::kLong && start->is_contiguous() &&
                    start->dim() == 2 && start->size(0) == q.size(1) && start->size(1) == q.size(0),
                "start is [batch, seq], int64, contiguous");
    args.start = start->const_data_ptr<int64_t>();
  }
  return args;
}

std::tuple<Tensor, Tensor> gated_window_forward(const Tensor& q, const Tensor& k, const Tensor& v,
                                                const Tensor& gate, const Tensor& global_out,
                                                const std::optional<Tensor>& start, int64_t window,
                                                double scale) {
  auto args = arguments(q, k, v, gate, start, window, scale);
  args.global_out = view_of(global_out, "global_out", q, q.sizes());
  const c10::cuda::CUDAGuard on(q.device());
  Tensor out = at::empty(q.sizes(), q.options());
  Tensor lse = at::empty({args.batch, args.heads, args.seq}, q.options().dtype(at::kFloat));
  if (q.numel() == 0) return {out, lse};
  args.out = view_of(out, "out", q, q.sizes());
  args.lse = lse.mutable_data_ptr<float>();
  C10_CUDA_CHECK(loopcoder::gated_window_forward(args, c10::cuda::getCurrentCUDAStream()));
  return {out, lse};
}

std::tuple<Tensor, Tensor> gated_window_prepare(const Tensor& d_out, const Tensor& gate,
                                                const Tensor& global_out) {
  TORCH_CHECK(d_out.dim() == 4, "d_out is [seq, batch, heads, head_dim]");
  loopcoder::GatedWindow args{};
  args.seq = d_out.size(0), args.batch = d_out.size(1), args.heads = d_out.size(2);
  args.head_dim = check_head_dim(d_out.size(3)), args.is_bf16 = is_bf16(d_out, "d_out");
  const c10::cuda::CUDAGuard on(d_out.device());
  Tensor scaled = at::empty(d_out.sizes(), d_out.options());
  Tensor dot = at::empty({args.batch, args.heads, args.seq}, d_out.options().dtype(at::kFloat));
  if (d_out.numel() == 0) return {scaled, dot};
  args.d_out = view_of(d_out, "d_out", d_out, d_out.sizes());
  args.global_out = view_of(global_out, "global_out", d_out, d_out.sizes());
  args.gate = gate_view(gate, d_out);
  args.out = view_of(scaled, "scaled", d_out, d_out.sizes());
  args.dot = dot.mutable_data_ptr<float>();
  C10_CUDA_CHECK(loopcoder::gated_window_prepare(args, c10::cuda::getCurrentCUDAStream()));
  return {scaled, dot};
}

std::tuple<Tensor, Tensor, Tensor> gated_window_backward(
    const Tensor& d_out, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& gate,
    const Tensor& dot, const Tensor& lse, const std::optional<Tensor>& start, int64_t window,
    double scale, Tensor& d_q, bool portable) {
  auto args = arguments(q, k, v, gate, start, window, scale);
  args.portable = portable;
  const c10::cuda::CUDAGuard on(q.device());
  const int64_t kv_shape[] = {args.seq, args.batch, args.kv_heads, args.head_dim};
  Tensor d_k = at::empty(kv_shape, q.options()), d_v = at::empty(kv_shape, q.options());
  Tensor d_gate = at::empty(gate.sizes(), gate.options());
  if (q.numel() == 0) return {d_k.zero_(), d_v.zero_(), d_gate.zero_()};
  const int64_t row_shape[] = {args.batch, args.heads, args.seq};
  for (const Tensor* rows : {&lse, &dot}) {
    check_device(*rows, "lse or dot", q);
    TORCH_CHECK(rows->scalar_type() == at::kFloat && rows->is_contiguous() &&
                    rows->sizes() == at::IntArrayRef(row_shape),
                "lse and dot are what gated_window_forward and gated_window_prepare returned");
  }
  Tensor stats = at::empty({args.batch, args.heads, args.seq, 4}, lse.options());
  args.d_out = view_of(d_out, "d_out", q, q.sizes());
  args.d_q = view_of(d_q, "d_q", q, q.sizes());
  args.d_k = view_of(d_k, "d_k", q, kv_shape);
  args.d_v = view_of(d_v, "d_v", q, kv_shape);
  args.d_gate = gate_view(d_gate, q);
  args.lse = const_cast<float*>(lse.const_data_ptr<float>());
  args.dot = const_cast<float*>(dot.const_data_ptr<float>());
  args.stats = reinterpret_cast<loopcoder::RowStats*>(stats.mutable_data_ptr<float>());
  C10_CUDA_CHECK(loopcoder::gated_window_backward(args, c10::cuda::getCurrentCUDAStream()));
  return {d_k, d_v, d_gate};
}

// h [seq, batch, width], folded [heads, width].
loopcoder::GateLogits gate_arguments(const Tensor& h, const Tensor& folded) {
  TORCH_CHECK(h.dim() == 3 && folded.dim() == 2, "h is [seq, batch, width], weights are a matrix");
  loopcoder::GateLogits args{};
  args.rows = h.size(0) * h.size(1), args.width = h.size(2), args.heads = folded.size(0);
  args.is_bf16 = is_bf16(h, "h");
  TORCH_CHECK(args.width > 0 && args.width % loopcoder::GATE_COLUMNS == 0, "the width ", args.width,
              " is no multiple of ", loopcoder::GATE_COLUMNS);
  TORCH_CHECK(args.heads > 0 && args.heads <= loopcoder::GATE_MAX_HEADS, args.heads, " heads, the ",
              "kernel takes 1 to ", loopcoder::GATE_MAX_HEADS);
  TORCH_CHECK(h.size(0) * h.size(1) < (1 << 30), "h is too long");
  check_like(h, "h", h, h.sizes());
  check_like(folded, "folded", h, {args.heads, args.width});
  args.hidden = h.const_data_ptr(), args.folded = folded.const_data_ptr();
  return args;
}

std::tuple<Tensor, Tensor, Tensor> gate_logits_forward(const Tensor& h, const Tensor& folded,
                                                       const Tensor& bias, double eps) {
  auto args = gate_arguments(h, folded);
  check_like(bias, "bias", h, {args.heads});
  const c10::cuda::CUDAGuard on(h.device());
  const int64_t shape[] = {h.size(0), h.size(1), args.heads};
  Tensor logits = at::empty(shape, h.options());
  Tensor raw = at::empty(shape, h.options().dtype(at::kFloat));
  Tensor rms = at::empty({args.rows}, raw.options());
  if (h.numel() == 0) return {logits, raw, rms};
  args.bias = bias.const_data_ptr(), args.eps = eps;
  args.logits = logits.mutable_data_ptr();
  args.raw = raw.mutable_data_ptr<float>(), args.rms = rms.mutable_data_ptr<float>();
  C10_CUDA_CHECK(loopcoder::gate_logits_forward(args, c10::cuda::getCurrentCUDAStream()));
  return {logits, raw, rms};
}

std::tuple<Tensor, Tensor, Tensor> gate_logits_backward(const Tensor& d_logits, const Tensor& raw,
                                                        const Tensor& rms, const Tensor& h,
                                                        const Tensor& folded, const Tensor& weight,
                                                        const Tensor& norm) {
  auto args = gate_arguments(h, folded);
  check_like(d_logits, "d_logits", h, {h.size(0), h.size(1), args.heads});
  check_like(weight, "weight", h, {args.heads, args.width});
  check_like(norm, "norm", h, {args.width});
  check_device(raw, "raw", h), check_device(rms, "rms", h);
  TORCH_CHECK(raw.scalar_type() == at::kFloat && raw.is_contiguous() &&
                  raw.sizes() == d_logits.sizes() && rms.scalar_type() == at::kFloat &&
                  rms.is_contiguous() && rms.numel() == args.rows,
              "raw and rms are what gate_logits_forward returned");
  const c10::cuda::CUDAGuard on(h.device());
  Tensor d_h = at::empty_like(h), d_weight = at::empty_like(weight), d_norm = at::empty_like(norm);
  if (h.numel() == 0) return {d_h, d_weight.zero_(), d_norm.zero_()};
  args.parts = loopcoder::gate_parts(args.rows, args.width);
  Tensor scaled = at::empty({args.rows, loopcoder::gate_padded(args.heads)}, h.options());
  Tensor along = at::empty({args.rows}, rms.options());
  Tensor partial = at::empty({args.parts, args.heads, args.width}, rms.options());
  args.d_logits = d_logits.const_data_ptr();
  args.raw = const_cast<float*>(raw.const_data_ptr<float>());
  args.rms = const_cast<float*>(rms.const_data_ptr<float>());
  args.weight = weight.const_data_ptr(), args.norm = norm.const_data_ptr();
  args.scaled = scaled.mutable_data_ptr(), args.along = along.mutable_data_ptr<float>();
  args.partial = partial.mutable_data_ptr<float>();
  args.d_hidden = d_h.mutable_data_ptr(), args.d_weight = d_weight.mutable_data_ptr();
  args.d_norm = d_norm.mutable_data_ptr();
  C10_CUDA_CHECK(loopcoder::gate_logits_backward(args, c10::cuda::getCurrentCUDAStream()));
  return {d_h, d_weight, d_norm};
}

// Sequences [seq, batch, width] that are contiguous.
loopcoder::LoopInput loop_arguments(const Tensor& x, const Tensor& first_token, double a,
                                    double b) {
  TORCH_CHECK(x.dim() == 3, "the loop input is [seq, batch, width]");
  check_like(x, "x", x, x.sizes());
  TORCH_CHECK(x.size(2) % 8 == 0, "the width ", x.size(2), " is no multiple of 8");
  check_device(first_token, "first_token", x);
  TORCH_CHECK(first_token.scalar_type() == at::kBool && first_token.dim() == 2 &&
                  first_token.size(0) == x.size(0) && first_token.size(1) == x.size(1),
              "first_token is [seq, batch], bool");
  loopcoder::LoopInput args{};
  args.seq = x.size(0), args.batch = x.size(1), args.width = x.size(2);
  args.is_bf16 = is_bf16(x, "x");
  args.a = a, args.b = b;
  args.first_token = first_token.const_data_ptr<bool>();
  args.first_seq = first_token.stride(0), args.first_batch = first_token.stride(1);
  return args;
}

Tensor loop_input_forward(const Tensor& embedding, const Tensor& hidden,
                          const std::optional<Tensor>& before, const Tensor& first_token, double a,
                          double b) {
  auto args = loop_arguments(embedding, first_token, a, b);
  check_like(hidden, "hidden", embedding, embedding.sizes());
  const c10::cuda::CUDAGuard on(embedding.device());
  Tensor out = at::empty_like(embedding);
  if (out.numel() == 0) return out;
  args.x = embedding.const_data_ptr(), args.y = hidden.const_data_ptr();
  if (before) {
    check_like(*before, "before", embedding, {1, args.batch, args.width});
    args.before = before->const_data_ptr();
  }
  args.out = out.mutable_data_ptr();
  C10_CUDA_CHECK(loopcoder::loop_input_forward(args, c10::cuda::getCurrentCUDAStream()));
  return out;
}

std::tuple<Tensor, Tensor, Tensor> loop_input_backward(const Tensor& d_out,
                                                       const Tensor& first_token, double a,
                                                       double b, bool has_before) {
  auto args = loop_arguments(d_out, first_token, a, b);
  const c10::cuda::CUDAGuard on(d_out.device());
  Tensor d_embedding = at::empty_like(d_out), d_hidden = at::empty_like(d_out);
  Tensor d_before = at::empty({has_before, args.batch, args.width}, d_out.options());
  if (d_out.numel() == 0) return {d_embedding, d_hidden, d_before.zero_()};
  if (has_before) args.out3 = d_before.mutable_data_ptr();
  args.x = d_out.const_data_ptr();
  args.out = d_embedding.mutable_data_ptr(), args.out2 = d_hidden.mutable_data_ptr();
  C10_CUDA_CHECK(loopcoder::loop_input_backward(args, c10::cuda::getCurrentCUDAStream()));
  return {d_embedding, d_hidden, d_before};
}

}  // namespace

TORCH_LIBRARY(loopcoder, m) {
  m.def(
      "gated_window_forward(Tensor q, Tensor k, Tensor v, Tensor gate, Tensor global_out, "
      "Tensor? start, int window, float scale) -> (Tensor, Tensor)");
  m.def(
      "gated_window_prepare(Tensor d_out, Tensor gate, Tensor global_out) -> (Tensor, Tensor)");
  m.def(
      "gated_window_backward(Tensor d_out, Tensor q, Tensor k, Tensor v, Tensor gate, Tensor dot, "
      "Tensor lse, Tensor? start, int window, float scale, Tensor(a!) d_q, bool portable=False) "
      "-> (Tensor, Tensor, Tensor)");
  m.def(
      "gate_logits_forward(Tensor h, Tensor folded, Tensor bias, float eps) "
      "-> (Tensor, Tensor, Tensor)");
  m.def(
      "gate_logits_backward(Tensor d_logits, Tensor raw, Tensor rms, Tensor h, Tensor folded, "
      "Tensor weight, Tensor norm) -> (Tensor, Tensor, Tensor)");
  m.def(
      "loop_input_forward(Tensor embedding, Tensor hidden, Tensor? before, Tensor first_token, "
      "float a, float b) -> Tensor");
  m.def(
      "loop_input_backward(Tensor d_out, Tensor first_token, float a, float b, bool has_before) "
      "-> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(loopcoder, CUDA, m) {
  m.impl("gated_window_forward", &gated_window_forward);
  m.impl("gated_window_backward", &gated_window_backward);
  m.impl("gated_window_prepare", &gated_window_prepare);
  m.impl("gate_logits_forward", &gate_logits_forward);
  m.impl("gate_logits_backward", &gate_logits_backward);
  m.impl("loop_input_forward", &loop_input_forward);
  m.impl("loop_input_backward", &loop_input_backward);
}
