// out = g * global + (1-g) * softmax(q k^T * scale) v over the keys t-window..t of a document.
//
// A block has 64 queries and all query heads of one K/V head: K and V of the 64+window keys come
// once. A warp takes 16 queries of one head at a time, by itself; the next ones come while it works.
#include "gated_window.h"
#include "launch.cuh"
#include "tile.cuh"

namespace loopcoder {
namespace {

constexpr int WARPS = 5, ROWS = 64;

template <typename T, int D, bool ONE_PASS>
__global__ void __launch_bounds__(32 * WARPS, 2) forward(const GatedWindow p, const int any_reach) {
  constexpr int BLOCK_BYTES = 16 * D * sizeof(T);
  extern __shared__ __align__(1024) unsigned char memory[];
  const int reach = ONE_PASS ? 16 * (HELD - 1) : any_reach, blocks = reach / 16 + 1;
  const int kv_head = blockIdx.x, first_row = blockIdx.y * ROWS, batch = blockIdx.z;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int group = p.heads / p.kv_heads, items = ROWS / 16 * group;
  const uint32_t keys = shared_address(memory);
  const uint32_t values = keys + (ROWS + reach) * D * sizeof(T);
  const uint32_t q_tile = values + (ROWS + reach) * D * sizeof(T) + warp * 2 * BLOCK_BYTES;
  const uint32_t out_tile = q_tile + BLOCK_BYTES;  // the global branch, then the output
  // item i is 16 queries of one head; warps take all heads of a row before the next row
  const auto load = [&](uint32_t tile, const View& view, int i) {
    if (i < items)
      load_rows<D>(tile, head_of<T>(view, batch, kv_head * group + i % group), view.seq,
                   first_row + i / group * 16, 16, p.seq, lane, 32);
    commit_copies();
  };
  load_rows<D>(keys, head_of<T>(p.k, batch, kv_head), p.k.seq, first_row - reach, ROWS + reach,
               p.seq, threadIdx.x, 32 * WARPS);
  load_rows<D>(values, head_of<T>(p.v, batch, kv_head), p.v.seq, first_row - reach, ROWS + reach,
               p.seq, threadIdx.x, 32 * WARPS);
  load(q_tile, p.q, warp);
  load(out_tile, p.global_out, warp);
  const uint32_t lane_keys = keys + lane_of_dots<D>(lane);
  const uint32_t lane_values = values + lane_of_rows<D>(lane);
  const float log2_scale = p.scale * LOG2_E;
  wait_for_copies<1>();
  __syncthreads();

  for (int i = warp; i < items; i += WARPS) {
    const int tile_block = i / group, head = kv_head * group + i % group;
    const int first = first_row + 16 * tile_block;
    const Queries mine(p, batch, first + g);
    const int first_key = first - reach + 2 * t;
    Rows<D> q;
    wait_for_copies<1>();  // all but the global branch
    __syncwarp();
    q.from_tile(q_tile + lane_of_rows<D>(lane));
    __syncwarp();
    load(q_tile, p.q, i + WARPS);
    float out[D / 8][4] = {}, top[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};
#pragma unroll 1
    for (int block = 0; block < (ONE_PASS ? 1 : blocks); block += HELD) {
      const int base = (tile_block + block) * BLOCK_BYTES;
      float s[HELD][2][4];
      float new_top[2] = {top[0], top[1]};
#pragma unroll
      for (int j = 0; j < HELD; ++j) {
        if (ONE_PASS || block + j < blocks) dots<T, D>(s[j], q, lane_keys, base + j * BLOCK_BYTES);
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            const int half = c >> 1, offset = 16 * j + 8 * n + (c & 1);
            if ((!ONE_PASS && block + j >= blocks) ||
                !mine.sees(half, first_key + 16 * block, offset))
              s[j][n][c] = -INFINITY;
            new_top[half] = fmaxf(new_top[half], s[j][n][c]);
          }
      }
      float offset[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        new_top[half] = quad_max(new_top[half]);
        // a row may see no key of the first blocks
        offset[half] = new_top[half] == -INFINITY ? 0.0f : new_top[half] * log2_scale;
      }
      if (!ONE_PASS && block > 0) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float rescale = exp2_fast(top[half] * log2_scale - offset[half]);
          sum[half] *= rescale;
#pragma unroll
          for (int n = 0; n < D / 8; ++n)
            out[n][2 * half] *= rescale, out[n][2 * half + 1] *= rescale;
        }
      }
      top[0] = new_top[0], top[1] = new_top[1];
      uint32_t weights[HELD][4];
#pragma unroll
      for (int j = 0; j < HELD; ++j)
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const float x = exp2_fast(s[j][n][2 * half] * log2_scale - offset[half]);
            const float y = exp2_fast(s[j][n][2 * half + 1] * log2_scale - offset[half]);
            sum[half] += x + y;
            weights[j][2 * n + half] = Half<T>::pack(x, y);
          }
#pragma unroll
      for (int j = 0; j < HELD; ++j)
        if (ONE_PASS || block + j < blocks)
          add_product<T, D>(out, weights[j], lane_values, base + j * BLOCK_BYTES);
    }
    float weight[2], gate[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float total = quad_sum(sum[half]);
      const float logit = logit_of<T>(p.gate, mine.index[half], batch, head);
      gate[half] = sigmoid(logit);
      weight[half] = __fdividef(sigmoid(-logit), total);
      if (t == 0 && mine.row[half] < p.seq)
        p.lse[(static_cast<int64_t>(batch) * p.heads + head) * p.seq + mine.row[half]] =
            top[half] * p.scale + __logf(total);
    }
    wait_for_copies<1>();  // all but the next q
    __syncwarp();
    mix_tile<T, D>(out_tile + lane_of_words<D>(lane), out, weight, gate);
    __syncwarp();
    store_rows<D>(out_tile, head_of<T>(p.out, batch, head), p.out.seq, first, p.seq, lane);
    __syncwarp();
    load(out_tile, p.global_out, i + WARPS);
  }
}

struct Forward {
  template <typename T, int D>
  static cudaError_t launch(const GatedWindow& p, cudaStream_t stream) {
    const bool one_pass = fits_one_pass(p.window);
    const int reach = one_pass ? 16 * (HELD - 1) : reach_of(p.window);
    const size_t bytes = 2 * (ROWS + reach + 16 * WARPS) * D * sizeof(T);
    const dim3 grid(p.kv_heads, (p.seq + ROWS - 1) / ROWS, p.batch);
    return start(one_pass ? forward<T, D, true> : forward<T, D, false>, grid, 32 * WARPS, bytes,
                 stream, p, reach);
  }
};

}  // namespace

cudaError_t gated_window_forward(const GatedWindow& args, cudaStream_t stream) {
  return dispatch<Forward>(args.is_bf16, args.head_dim, args, stream);
}

}  // namespace loopcoder
