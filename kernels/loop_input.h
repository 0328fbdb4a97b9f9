// The interface between the loop input's kernels and their PyTorch operators.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace loopcoder {

// Tensors are [seq, batch, width], contiguous.
struct LoopInput {
  int64_t seq, batch, width;
  bool is_bf16;
  float a, b;
  const bool* first_token;  // [seq, batch], with strides in elements
  int64_t first_seq, first_batch;
  const void *x, *y;   // forward: embedding and the previous loop's output; backward: d_out
  const void* before;  // forward: the position before y's first [batch, width]; null: zeros
  void *out, *out2;    // forward: the input; backward: gradients of x and y
  void* out3;          // backward: gradient of `before`, or null
};

cudaError_t loop_input_forward(const LoopInput& args, cudaStream_t stream);
cudaError_t loop_input_backward(const LoopInput& args, cudaStream_t stream);

}  // namespace loopcoder
