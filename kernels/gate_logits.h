// The interface between the gate's kernels and their PyTorch operators.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>

namespace loopcoder {

constexpr int GATE_COLUMNS = 64;  // the width is a multiple of it
constexpr int GATE_ROWS = 64;
constexpr int GATE_MAX_HEADS = 128;

// Matrices are contiguous. `folded` is weight * norm, so that logits = rms(h) * h folded^T + bias.
struct GateLogits {
  int rows, width, heads;
  bool is_bf16;
  float eps;
  const void* hidden;         // [rows, width]
  const void* folded;         // [heads, width]
  const void* bias;           // [heads]
  void* logits;               // forward: written [rows, heads]
  float* raw;                 // logits without the bias [rows, heads]
  float* rms;                 // 1 / sqrt(mean(h^2) + eps) [rows]
  // backward
  const void* d_logits;       // [rows, heads]
  const void *weight, *norm;  // [heads, width], [width]
  void* scaled;               // scratch: d_logits * rms [rows, gate_padded(heads)]
  float* along;               // scratch: how much of h the gradient of h loses [rows]
  float* partial;             // scratch [parts, heads, width]
  int parts;
  void *d_hidden, *d_weight, *d_norm;
};

// Columns of `scaled`.
inline int gate_padded(int heads) { return heads <= 64 ? 64 : GATE_MAX_HEADS; }

// Parts of the rows that the backward pass sums one by one: three blocks a multiprocessor of an
// H100, and the same on every GPU, so that the order of the sums is.
inline int gate_parts(int rows, int width) {
  return std::clamp(3 * 132 / (width / GATE_COLUMNS), 1, (rows + GATE_ROWS - 1) / GATE_ROWS);
}

cudaError_t gate_logits_forward(const GateLogits& args, cudaStream_t stream);
cudaError_t gate_logits_backward(const GateLogits& args, cudaStream_t stream);

}  // namespace loopcoder
