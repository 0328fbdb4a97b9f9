// Building blocks for 16-bit matrix products by one warp (mma.m16n8k16, sm_80 and newer).
//
// Fragments, for lane = 4*g + t:
//   C 16x8    c[0..1] = row g,   columns 2t, 2t+1;  c[2..3] = row g+8
//   A 16x16   a[0] = row g, k 2t..2t+1;  a[1] = row g+8;  a[2], a[3] = the same with k+8
//   B 16x8    b0 = k 2t..2t+1 of column g;  b1 = k+8
// Two C fragments of one row block are an A fragment, which is how softmax(QK^T) meets V without a
// detour.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace loopcoder {

template <typename T>
struct Half;  // what differs between the two 16-bit types

#define LOOPCODER_MMA(TYPE)                                                            \
  asm("mma.sync.aligned.m16n8k16.row.col.f32." TYPE "." TYPE                  \
               ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"            \
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                        \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))

template <>
struct Half<__nv_bfloat16> {
  static constexpr bool IS_BF16 = true;
  static __device__ uint32_t pack(float x, float y) {
    const __nv_bfloat162 both = __floats2bfloat162_rn(x, y);
    return *reinterpret_cast<const uint32_t*>(&both);
  }
  static __device__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
  static __device__ __nv_bfloat16 from_float(float x) { return __float2bfloat16_rn(x); }
  static __device__ float2 unpack(uint32_t both) {
    return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&both));
  }
  static __device__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    LOOPCODER_MMA("bf16");
  }
};

template <>
struct Half<__half> {
  static constexpr bool IS_BF16 = false;
  static __device__ uint32_t pack(float x, float y) {
    const __half2 both = __floats2half2_rn(x, y);
    return *reinterpret_cast<const uint32_t*>(&both);
  }
  static __device__ float to_float(__half x) { return __half2float(x); }
  static __device__ __half from_float(float x) { return __float2half_rn(x); }
  static __device__ float2 unpack(uint32_t both) {
    return __half22float2(*reinterpret_cast<const __half2*>(&both));
  }
  static __device__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    LOOPCODER_MMA("f16");
  }
};
#undef LOOPCODER_MMA

// ---------------------------------------------------------------------------------------------
// A tile: rows of D numbers in shared memory, in chunks of 16 bytes. Chunks are permuted so that 8
// rows of one chunk do not meet in a bank. Tiles start at multiples of 256 bytes, so that a lane
// goes from chunk to chunk by an exclusive or.

template <int D>
__device__ int at(int row, int chunk) {  // in bytes
  return row * D * 2 + ((chunk ^ (row & 7)) << 4);
}

__device__ inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}
// Of a block's dynamic shared memory, which is declared to start at a multiple of 1024 bytes: tiles
// and wgmma rely on it. The compiler believes the declaration and would leave a plain check out.
__device__ inline uint32_t shared_start(const void* memory) {
  const uint32_t address = shared_address(memory);
  uint32_t found;
  asm volatile("mov.b32 %0, %1;" : "=r"(found) : "r"(address));
  if (found % 1024) __trap();
  return address;
}
__device__ inline uint4 read_shared(uint32_t address) {
  uint4 x;
  asm volatile("ld.shared.v4.b32 {%0,%1,%2,%3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "r"(address));
  return x;
}
__device__ inline uint32_t read_word(uint32_t address) {
  uint32_t x;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(x) : "r"(address));
  return x;
}
__device__ inline void write_word(uint32_t address, uint32_t x) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(x) : "memory");
}
__device__ inline void write_shared(uint32_t address, const uint4& x) {
  asm volatile("st.shared.v4.b32 [%0], {%1,%2,%3,%4};" ::"r"(address), "r"(x.x), "r"(x.y),
               "r"(x.z), "r"(x.w)
               : "memory");
}

__device__ inline void write_global(void* pointer, const uint4& x) {
  asm volatile("st.global.v4.b32 [%0], {%1,%2,%3,%4};" ::"l"(pointer), "r"(x.x), "r"(x.y),
               "r"(x.z), "r"(x.w)
               : "memory");
}

// Copy 16 bytes to shared memory in the background; zeros where `inside` is false.
__device__ inline void copy_async(uint32_t target, const void* source, bool inside) {
  const int bytes = inside ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(source),
               "r"(bytes));
}
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;"); }
template <int PENDING>
__device__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// Copy rows first..first+count-1 of a [total, D] matrix into a tile, in the background; rows that
// do not exist become zeros. `threads` of them share the work.
template <int D, typename T>
__device__ void load_rows(uint32_t tile, const T* matrix, int64_t stride, int first, int count,
                          int total, int thread, int threads) {
  constexpr int CHUNKS = D / 8;
  const int chunk = thread % CHUNKS;
#pragma unroll 4
  for (int row = thread / CHUNKS; row < count; row += threads / CHUNKS) {
    const int index = first + row;
    const bool inside = index >= 0 && index < total;
    copy_async(tile + at<D>(row, chunk), matrix + (inside ? index : 0) * stride + chunk * 8,
               inside);
  }
}

// Write the 16 rows of a warp's tile to rows first.. of a [total, D] matrix.
template <int D, typename T>
__device__ void store_rows(uint32_t tile, T* matrix, int64_t stride, int first, int total,
                           int lane) {
  constexpr int CHUNKS = D / 8;
  const int chunk = lane % CHUNKS;
#pragma unroll
  for (int i = 0; i < CHUNKS / 2; ++i) {
    const int row = lane / CHUNKS + i * (32 / CHUNKS);
    const uint4 words = read_shared(tile + at<D>(row, chunk));
    if (first + row < total) write_global(matrix + (first + row) * stride + chunk * 8, words);
  }
}

// ---------------------------------------------------------------------------------------------
// Where a lane reads a tile, to be added to the tile's address.

template <int D>
__device__ int lane_of_rows(int lane) {  // of an A operand, or of a B operand summed over rows
  return at<D>(((lane >> 3) & 1) * 8 + (lane & 7), lane >> 4);
}
template <int D>
__device__ int lane_of_dots(int lane) {  // of a B operand summed over D
  return at<D>((lane >> 4) * 8 + (lane & 7), (lane >> 3) & 1);
}
template <int D>
__device__ int lane_of_words(int lane) {  // of a C fragment: row g, numbers 2t, 2t+1
  return at<D>(lane / 4, 0) + lane % 4 * 4;
}

// 16 rows as an A operand for sums over D.
template <int D>
struct Rows {
  uint32_t a[D / 16][4];

  __device__ void from_tile(uint32_t lane_tile) {
#pragma unroll
    for (int i = 0; i < D / 16; ++i)
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                   : "=r"(a[i][0]), "=r"(a[i][1]), "=r"(a[i][2]), "=r"(a[i][3])
                   : "r"(lane_tile ^ (i * 32)));
  }
  // `low` and `high` are rows g and g+8.
  template <typename T>
  __device__ void from_memory(const T* low, const T* high, int t) {
#pragma unroll
    for (int i = 0; i < D / 16; ++i)
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        const int column = 16 * i + 8 * k + 2 * t;
        a[i][2 * k] = *reinterpret_cast<const uint32_t*>(low + column);
        a[i][2 * k + 1] = *reinterpret_cast<const uint32_t*>(high + column);
      }
  }
};

// c[n], columns 8n..8n+7 += dot products with rows 8n.. of the 16 that start at `row` (in bytes).
template <typename T, int D>
__device__ void add_dots(float (&c)[2][4], const Rows<D>& rows, uint32_t lane_tile, int row) {
#pragma unroll
  for (int i = 0; i < D / 16; ++i) {
    uint32_t b[4];
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
                 : "r"((lane_tile ^ (i * 32)) + row));
    Half<T>::mma(c[0], rows.a[i], b[0], b[1]);
    Half<T>::mma(c[1], rows.a[i], b[2], b[3]);
  }
}

// The same, from zero.
template <typename T, int D>
__device__ void dots(float (&c)[2][4], const Rows<D>& rows, uint32_t lane_tile, int row) {
#pragma unroll
  for (int n = 0; n < 2; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) c[n][i] = 0.0f;
  add_dots<T, D>(c, rows, lane_tile, row);
}

__device__ inline void load_transposed(uint32_t (&x)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(address));
}

// sum [16 x D] += a [16 x 16] * the 16 rows that start at `row` (in bytes).
template <typename T, int D>
__device__ void add_product(float (&sum)[D / 8][4], const uint32_t (&a)[4], uint32_t lane_tile,
                            int row) {
#pragma unroll
  for (int n = 0; n < D / 8; n += 2) {
    uint32_t b[4];
    load_transposed(b, (lane_tile ^ (n * 16)) + row);
    Half<T>::mma(sum[n], a, b[0], b[1]);
    Half<T>::mma(sum[n + 1], a, b[2], b[3]);
  }
}

// tile = factor * sum.
template <typename T, int D>
__device__ void put_tile(uint32_t lane_tile, const float (&sum)[D / 8][4], float factor) {
#pragma unroll
  for (int n = 0; n < D / 8; ++n)
#pragma unroll
    for (int half = 0; half < 2; ++half)
      write_word((lane_tile ^ (n * 16)) + half * 8 * D * 2,
                 Half<T>::pack(factor * sum[n][2 * half], factor * sum[n][2 * half + 1]));
}

// tile = mine * sum + theirs * tile, where mine and theirs are factors of rows g and g+8.
template <typename T, int D>
__device__ void mix_tile(uint32_t lane_tile, const float (&sum)[D / 8][4], const float (&mine)[2],
                         const float (&theirs)[2]) {
#pragma unroll
  for (int n = 0; n < D / 8; ++n)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t place = (lane_tile ^ (n * 16)) + half * 8 * D * 2;
      const float2 x = Half<T>::unpack(read_word(place));
      write_word(place, Half<T>::pack(mine[half] * sum[n][2 * half] + theirs[half] * x.x,
                                      mine[half] * sum[n][2 * half + 1] + theirs[half] * x.y));
    }
}

// ---------------------------------------------------------------------------------------------

// Over the four lanes of a row.
__device__ inline float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffff, x, 2));
}
__device__ inline float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffff, x, 1);
  return x + __shfl_xor_sync(0xffffffff, x, 2);
}
__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ inline float sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }

__device__ inline void unpack_words(uint32_t (&x)[4], const uint4& words) {
  x[0] = words.x, x[1] = words.y, x[2] = words.z, x[3] = words.w;
}

}  // namespace loopcoder
