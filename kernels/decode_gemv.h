// The interface between the matrix products of decoding and their PyTorch operator.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace loopcoder {

constexpr int GEMV_MAX_ROWS = 8;

// out = x W^T for a few rows of x, in bf16 with sums in fp32. [rows, columns], contiguous.
struct DecodeGemv {
  int rows, columns, width;
  const void *x, *weight;  // [rows, width] with a stride, [columns, width]
  int64_t x_row;           // in elements
  const void* norm;        // weight of an RMSNorm of x before the product [width], or null
  float eps;
  bool swiglu;             // the weight is [2 * columns, width], gate, then up: silu(gate) * up
  const void* added;       // [rows, columns] to add, may be `out`; or null
  int64_t added_row;       // in elements; 0: a bias
  bool is_float;           // out is fp32, not bf16
  void* out;
};

cudaError_t decode_gemv(const DecodeGemv& args, cudaStream_t stream);

}  // namespace loopcoder
