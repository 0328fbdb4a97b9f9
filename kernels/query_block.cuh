// How the kernels that give every warp 16 queries divide their work (forward, and the backward pass
// over queries).
//
// A block has 64 queries and all query heads of one K/V head: K and V of the 64+window keys come
// once. Item i is 16 queries of one head; a warp takes one at a time, by itself, and all heads of a
// row come before the next row.
#pragma once

#include "gated_window.cuh"
#include "launch.cuh"

namespace loopcoder {

template <typename T, int D, int WARPS, int TILES>
struct QueryBlock {
  static constexpr int ROWS = 64, THREADS = 32 * WARPS, BLOCK_BYTES = 16 * D * sizeof(T);
  const GatedWindow& p;
  const int reach, blocks;  // keys before the first query, and the blocks that 16 queries see
  const int kv_head = blockIdx.x, first_row = blockIdx.y * ROWS, batch = blockIdx.z;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int group, items;
  const uint32_t keys, values, tiles;  // in shared memory; `tiles` are the warp's own

  __device__ QueryBlock(const GatedWindow& p, int reach, unsigned char* memory)
      : p(p),
        reach(reach),
        blocks(reach / 16 + 1),
        group(p.heads / p.kv_heads),
        items(ROWS / 16 * group),
        keys(shared_start(memory)),
        values(keys + (ROWS + reach) * D * sizeof(T)),
        tiles(values + (ROWS + reach) * D * sizeof(T) + warp * TILES * BLOCK_BYTES) {}

  __device__ int row_block(int i) const { return i / group; }
  __device__ int head(int i) const { return kv_head * group + i % group; }
  __device__ int first(int i) const { return first_row + 16 * row_block(i); }

  __device__ void load_keys() const {
    load_rows<D>(keys, head_of<T>(p.k, batch, kv_head), p.k.seq, first_row - reach, ROWS + reach,
                 p.seq, threadIdx.x, THREADS);
    load_rows<D>(values, head_of<T>(p.v, batch, kv_head), p.v.seq, first_row - reach, ROWS + reach,
                 p.seq, threadIdx.x, THREADS);
  }
  __device__ void load(uint32_t tile, const View& view, int i) const {
    if (i < items)
      load_rows<D>(tile, head_of<T>(view, batch, head(i)), view.seq, first(i), 16, p.seq, lane, 32);
  }
  __device__ void store(uint32_t tile, const View& view, int i) const {
    store_rows<D>(tile, head_of<T>(view, batch, head(i)), view.seq, first(i), p.seq, lane);
  }

  static constexpr size_t bytes(int reach) {
    return 2 * (ROWS + reach) * D * sizeof(T) + WARPS * TILES * BLOCK_BYTES;
  }

  template <typename Kernel>
  static cudaError_t launch(Kernel one_pass, Kernel any, const GatedWindow& p,
                            cudaStream_t stream) {
    static_assert(bytes(16 * (HELD - 1)) <= SHARED_BYTES_80, "one pass does not fit anywhere");
    static_assert(bytes(reach_of(MAX_WINDOW)) <= SHARED_BYTES_90, "the widest window does not fit");
    const bool fits = fits_one_pass(p.window);
    const int reach = fits ? 16 * (HELD - 1) : reach_of(p.window);
    const dim3 grid(p.kv_heads, (p.seq + ROWS - 1) / ROWS, p.batch);
    return start(fits ? one_pass : any, grid, THREADS, bytes(reach), stream, p, reach);
  }
};

}  // namespace loopcoder
