// The interface between the kernels and their PyTorch operators.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace loopcoder {

// A tensor [seq, batch, heads, head_dim]; strides in elements, head_dim is contiguous.
struct View {
  void* data;
  int64_t seq, batch, head;
};

// Numbers of one query row that the backward pass over keys needs.
struct alignas(16) RowStats {
  float lse;       // log2 of (sum of exp(scores)) / (1 - g): exp2(score - lse) is (1-g) P
  float delta;     // sum over keys of P * dP, before the gate
  int32_t lowest;  // first key of the row
  int32_t unused;
};

constexpr int MAX_WINDOW = 256;  // keys before its own that a query can see

struct GatedWindow {
  int seq, batch, heads, kv_heads, head_dim, window;
  bool is_bf16, portable;  // portable: without the kernels that are for one architecture
  float scale;
  View q, k, v, global_out;
  View gate;             // logits [seq, batch, heads]
  const int64_t* start;  // first token of each position's document [batch, seq], or null
  View out;              // forward: written; prepare: g * d_out
  float* lse;            // natural logarithm [batch, heads, seq]; forward writes, backward reads
  View d_out;
  float* dot;            // <d_out, global_out> [batch, heads, seq]; prepare writes, backward reads
  View d_q;              // backward: holds the global branch's part and gets the sum
  View d_k, d_v, d_gate; // backward: written
  RowStats* stats;       // backward: scratch [batch, heads, seq]
};

// All return what the launch returned. The backward pass is prepare, then the global branch's own
// with g * d_out, then backward.
cudaError_t gated_window_forward(const GatedWindow& args, cudaStream_t stream);
cudaError_t gated_window_prepare(const GatedWindow& args, cudaStream_t stream);
cudaError_t gated_window_backward(const GatedWindow& args, cudaStream_t stream);

}  // namespace loopcoder
