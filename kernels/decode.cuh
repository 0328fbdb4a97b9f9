// Building blocks of the kernels for decoding, where a token's time is that of reading the weights.
#pragma once

#include <cstdint>

namespace loopcoder {

// A kernel that is started by `start_early` begins while the one before it in the stream still
// runs. It may ask for what no kernel writes, calls `wait_for_inputs` in all threads before it
// touches anything that another kernel writes or reads, and then `let_next_begin`: what it has
// written itself is seen by whoever waits for it, and by all that come after. In the other order
// kernels that wait for each other would fill the multiprocessors, and the one in front of them
// would have no room for all its blocks.
__device__ inline void let_next_begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}
__device__ inline void wait_for_inputs() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Copy 16 bytes of a line of 128 that is read once and whole; zeros where `inside` is false.
__device__ inline void stream_async(uint32_t target, const void* source, bool inside) {
  const int bytes = inside ? 16 : 0;
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(target), "l"(source),
               "r"(bytes));
}

__device__ inline float warp_sum(float x) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2)
    x += __shfl_xor_sync(0xffffffff, x, distance);
  return x;
}
__device__ inline float warp_max(float x) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2)
    x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, distance));
  return x;
}

}  // namespace loopcoder
