// out = g * global + (1-g) * softmax(q k^T * scale) v over the keys t-window..t of a document.
//
// While a warp works on 16 queries, its next ones come.
#include "gated_window.cuh"
#include "launch.cuh"
#include "query_block.cuh"
#include "tile.cuh"

namespace loopcoder {
namespace {

constexpr int WARPS = 5, TILES = 2;
template <typename T, int D>
using Block = QueryBlock<T, D, WARPS, TILES>;

template <typename T, int D, bool ONE_PASS>
__global__ void __launch_bounds__(32 * WARPS, 2)
    window_forward(const GatedWindow p, const int reach) {
  constexpr int BLOCK_BYTES = Block<T, D>::BLOCK_BYTES;
  extern __shared__ __align__(1024) unsigned char memory[];
  const Block<T, D> all(p, ONE_PASS ? 16 * (HELD - 1) : reach, memory);
  const int blocks = all.blocks, batch = all.batch, lane = all.lane, t = all.t;
  const uint32_t q_tile = all.tiles;
  const uint32_t out_tile = q_tile + BLOCK_BYTES;  // the global branch, then the output
  const auto load = [&](uint32_t tile, const View& view, int i) {
    all.load(tile, view, i);
    commit_copies();
  };
  all.load_keys();
  load(q_tile, p.q, all.warp);
  load(out_tile, p.global_out, all.warp);
  const uint32_t lane_keys = all.keys + lane_of_dots<D>(lane);
  const uint32_t lane_values = all.values + lane_of_rows<D>(lane);
  const float log2_scale = p.scale * LOG2_E;
  wait_for_copies<1>();
  __syncthreads();

  for (int i = all.warp; i < all.items; i += WARPS) {
    const int head = all.head(i), first_key = all.first(i) - all.reach + 2 * t;
    const Queries mine(p, batch, all.first(i) + all.g);
    Rows<D> q;
    wait_for_copies<1>();  // all but the global branch
    __syncwarp();
    q.from_tile(q_tile + lane_of_rows<D>(lane));
    __syncwarp();
    load(q_tile, p.q, i + WARPS);
    float out[D / 8][4] = {}, top[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};
#pragma unroll 1
    for (int block = 0; block < (ONE_PASS ? 1 : blocks); block += HELD) {
      const int base = (all.row_block(i) + block) * BLOCK_BYTES;
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
    all.store(out_tile, p.out, i);
    __syncwarp();
    load(out_tile, p.global_out, i + WARPS);
  }
}

struct Forward {
  template <typename T, int D>
  static cudaError_t launch(const GatedWindow& p, cudaStream_t stream) {
    return Block<T, D>::launch(window_forward<T, D, true>, window_forward<T, D, false>, p, stream);
  }
};

}  // namespace

cudaError_t gated_window_forward(const GatedWindow& args, cudaStream_t stream) {
  return dispatch<Forward>(args.is_bf16, args.head_dim, args, stream);
}

}  // namespace loopcoder
