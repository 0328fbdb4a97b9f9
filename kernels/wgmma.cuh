// Matrix products by a warpgroup (wgmma, sm_90a only), operands in shared memory.
//
// A tile has 64 columns of 16 bits: rows of 128 bytes, their chunks permuted as `at<64>` of
// tile.cuh does, which is the hardware's 128-byte swizzle. 64 rows are a PANEL; a wider matrix is
// panels one after the other. Tiles start at multiples of 1024 bytes. A sum over columns reads a
// tile as it lies (ALONG_ROWS), a sum over rows reads it transposed (ACROSS).
// The accumulators of warp w have the rows 16w..16w+15, in the C fragments of tile.cuh.
#pragma once

#include "tile.cuh"

namespace loopcoder {

constexpr int WARPGROUP = 128, PANEL = 64 * 64 * 2;
constexpr int ALONG_ROWS = 0, ACROSS = 1;

// Matrix descriptor: 8 rows are 1024 bytes, the next 64 columns one panel on, 128-byte swizzle.
// `step` is that of a product: 16 numbers of the sum.
template <int ORDER>
__device__ uint64_t describe(uint32_t tile, int step) {
  constexpr uint32_t STEP = ORDER == ALONG_ROWS ? 16 * 2 : 16 * 128;  // in bytes
  constexpr uint32_t HIGH = 1 << 30 | 1024 >> 4;
  const uint32_t low = (tile >> 4 | (PANEL >> 4) << 16) + step * (STEP >> 4);
  uint64_t both;
  asm("mov.b64 %0, {%1, %2};" : "=l"(both) : "r"(low), "r"(HIGH));
  return both;
}

#define LOOPCODER_FRAGMENT(x) "+f"(x[0]), "+f"(x[1]), "+f"(x[2]), "+f"(x[3])
#define LOOPCODER_PANEL(x)                                                              \
  LOOPCODER_FRAGMENT(x[0]), LOOPCODER_FRAGMENT(x[1]), LOOPCODER_FRAGMENT(x[2]),         \
      LOOPCODER_FRAGMENT(x[3]), LOOPCODER_FRAGMENT(x[4]), LOOPCODER_FRAGMENT(x[5]),     \
      LOOPCODER_FRAGMENT(x[6]), LOOPCODER_FRAGMENT(x[7])
#define LOOPCODER_WGMMA_64(TYPE)                                                        \
  asm volatile(                                                                         \
      "{.reg .pred p; setp.ne.b32 p, %34, 0;"                                           \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." TYPE "." TYPE                       \
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21," \
      "%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, %32, %33, p, 1, 1, %35, %36;}"         \
      : LOOPCODER_PANEL(sum)                                                            \
      : "l"(a), "l"(b), "r"(int{add}), "n"(ORDER_A), "n"(ORDER_B))
#define LOOPCODER_WGMMA_128(TYPE)                                                       \
  asm volatile(                                                                         \
      "{.reg .pred p; setp.ne.b32 p, %66, 0;"                                           \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." TYPE "." TYPE                      \
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21," \
      "%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,"    \
      "%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,"    \
      "%60,%61,%62,%63}, %64, %65, p, 1, 1, %67, %68;}"                                 \
      : LOOPCODER_PANEL(sum[0]), LOOPCODER_PANEL(sum[1])                                \
      : "l"(a), "l"(b), "r"(int{add}), "n"(ORDER_A), "n"(ORDER_B))

// sum [64 x 64] = a [64 x 16] * b [16 x 64], added to what was there if `add`.
template <typename T, int ORDER_A, int ORDER_B>
__device__ void wgmma(float (&sum)[8][4], uint64_t a, uint64_t b, bool add) {
  if constexpr (Half<T>::IS_BF16) {
    LOOPCODER_WGMMA_64("bf16");
  } else {
    LOOPCODER_WGMMA_64("f16");
  }
}
// The same with 128 columns.
template <typename T, int ORDER_A, int ORDER_B>
__device__ void wgmma(float (&sum)[2][8][4], uint64_t a, uint64_t b, bool add) {
  if constexpr (Half<T>::IS_BF16) {
    LOOPCODER_WGMMA_128("bf16");
  } else {
    LOOPCODER_WGMMA_128("f16");
  }
}
#undef LOOPCODER_FRAGMENT
#undef LOOPCODER_PANEL
#undef LOOPCODER_WGMMA_64
#undef LOOPCODER_WGMMA_128

// sum = a * b over 64 numbers of the sum, which are one panel of each operand.
template <typename T, int ORDER_A, int ORDER_B, typename Sum>
__device__ void multiply(Sum& sum, uint32_t a, uint32_t b, bool add) {
#pragma unroll
  for (int step = 0; step < 4; ++step)
    wgmma<T, ORDER_A, ORDER_B>(sum, describe<ORDER_A>(a, step), describe<ORDER_B>(b, step),
                               add || step > 0);
}

// Before products: registers and shared memory that this thread wrote are theirs to read.
__device__ inline void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void show_to_products() {  // in every writing thread, before a barrier
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
__device__ inline void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int PENDING>
__device__ void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}
// After wait_for_products, for each sum: nothing that reads it may move before.
__device__ inline void settle(float (&sum)[8][4]) {
#pragma unroll
  for (int n = 0; n < 8; ++n)
#pragma unroll
    for (int c = 0; c < 4; ++c) asm volatile("" : "+f"(sum[n][c])::"memory");
}

}  // namespace loopcoder
