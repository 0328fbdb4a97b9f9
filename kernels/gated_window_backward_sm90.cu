// The backward pass of the gated window in one kernel, for Hopper: head_dim 128, windows up to 64.
// The mathematics and the names are those of gated_window_backward.cu.
//
// A block has one K/V head and some tiles of 64 rows, one after the other. The queries of a tile
// see the keys of this tile and of the one before. Each of two warpgroups holds dk and dv of one
// tile of keys in registers, from the tile of queries that meets it first to the next one, which is
// the last; so the warpgroups take turns in beginning a tile of keys. For every head of a tile
//   1. both warpgroups compute scores and dP of the queries with their keys,
//   2. they add up delta, and leave (1-g) P and dS in shared memory,
//   3. each adds to its dk and dv, and computes dq for half of the head's columns.
// Whoever ends with a tile of keys needs the queries of the tile after it: a block computes the
// tile that follows its own once more, for these keys alone. There are no atomics.
#include <algorithm>

#include "gated_window.cuh"
#include "launch.cuh"
#include "tile.cuh"
#include "wgmma.cuh"

namespace loopcoder {
namespace {
namespace sm90 {

constexpr int ROWS = 64, THREADS = 2 * WARPGROUP;
constexpr int TILE = 2 * PANEL;  // bytes of 64 rows of 128 numbers

__host__ __device__ int tiles_of(const GatedWindow& p) { return (p.seq + ROWS - 1) / ROWS; }

// Shared memory, in bytes: K and V of three tiles, two of which are in use while the third comes;
// two stages of q, dO and dq of a head; (1-g) P and dS of both warpgroups; what each adds to delta.
constexpr int KEY_TILES = 3, STAGES = 2;
constexpr int STAGES_AT = 2 * KEY_TILES * TILE, SCORES_AT = STAGES_AT + STAGES * 3 * TILE,
              DELTA_AT = SCORES_AT + 2 * 2 * PANEL, BYTES = DELTA_AT + 2 * ROWS * 4;
static_assert(BYTES <= SHARED_BYTES_90, "the ring does not fit into shared memory");

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

struct Memory {
  uint32_t start;

  __device__ uint32_t keys(int tile) const {  // tile -1 has the keys before the first
    return start + (tile + KEY_TILES) % KEY_TILES * TILE;
  }
  __device__ uint32_t values(int tile) const { return keys(tile) + KEY_TILES * TILE; }
  __device__ uint32_t q(int stage) const { return start + STAGES_AT + stage % STAGES * 3 * TILE; }
  __device__ uint32_t d_out(int stage) const { return q(stage) + TILE; }
  __device__ uint32_t d_q(int stage) const { return q(stage) + 2 * TILE; }
  // Of all queries of a tile with the keys of a warpgroup.
  __device__ uint32_t weights(int warpgroup) const {
    return start + SCORES_AT + warpgroup * 2 * PANEL;
  }
  __device__ uint32_t d_scores(int warpgroup) const { return weights(warpgroup) + PANEL; }
  __device__ uint32_t delta(int warpgroup, int row) const {
    return start + DELTA_AT + (warpgroup * ROWS + row) * 4;
  }
};

// Copies a block's tiles to shared memory in the background. A thread copies a chunk of 16 bytes of
// every 16th row; rows outside the sequence become zeros.
template <typename T>
struct Loader {
  static constexpr int STEP = THREADS / 16;
  const GatedWindow& p;
  const Memory memory;
  const int kv_head, batch, group, end, last;  // d_q is loaded up to `end`, the rest up to `last`
  const int row = threadIdx.x / 16, chunk = threadIdx.x % 16;
  const uint32_t place = chunk / 8 * PANEL + at<64>(row, chunk % 8);
  int tile, head;  // which comes next; head of the group
  const T *q, *d_out, *d_q;

  __device__ Loader(const GatedWindow& p, Memory memory, int begin, int end, int last)
      : p(p), memory(memory), kv_head(blockIdx.x), batch(blockIdx.z), group(p.heads / p.kv_heads),
        end(end), last(last), tile(begin), head(0), q(source(p.q, kv_head * group)),
        d_out(source(p.d_out, kv_head * group)), d_q(source(p.d_q, kv_head * group)) {
    load_keys(begin - 1);
  }
  __device__ const T* source(const View& view, int head) const {
    return head_of<T>(view, batch, head) + (tile * ROWS + row) * view.seq + chunk * 8;
  }
  __device__ void load(uint32_t target, const T* source, const View& view, int tile) const {
#pragma unroll
    for (int i = 0; i < ROWS; i += STEP, source += STEP * view.seq) {
      const unsigned index = tile * ROWS + row + i;
      copy_async(target + place + i * 128, source, index < static_cast<unsigned>(p.seq));
    }
  }
  __device__ void load_keys(int tile) const {  // the next one, or the one before the block's own
    const int64_t back = static_cast<int64_t>(tile - this->tile) * ROWS;
    load(memory.keys(tile), source(p.k, kv_head) + back * p.k.seq, p.k, tile);
    load(memory.values(tile), source(p.v, kv_head) + back * p.v.seq, p.v, tile);
  }
  __device__ void load_next(int stage) {
    if (tile < last) {
      if (head == 0) load_keys(tile);
      load(memory.q(stage), q, p.q, tile);
      load(memory.d_out(stage), d_out, p.d_out, tile);
      if (tile < end) load(memory.d_q(stage), d_q, p.d_q, tile);
      const bool is_last_head = ++head == group;
      const auto advance = [&](const T*& source, const View& view) {
        source += is_last_head ? ROWS * view.seq - (group - 1) * view.head : view.head;
      };
      advance(q, p.q), advance(d_out, p.d_out), advance(d_q, p.d_q);
      if (is_last_head) head = 0, ++tile;
    }
    commit_copies();
  }
};

// sum = a b^T for two matrices [64, 128].
template <typename T>
__device__ void multiply_rows(float (&sum)[8][4], uint32_t a, uint32_t b) {
  multiply<T, ALONG_ROWS, ALONG_ROWS>(sum, a, b, false);
  multiply<T, ALONG_ROWS, ALONG_ROWS>(sum, a + PANEL, b + PANEL, true);
}

template <typename T>
__global__ void __launch_bounds__(THREADS, 1)
    window_backward_sm90(const GatedWindow p, const int block_tiles) {
  extern __shared__ __align__(1024) unsigned char shared[];
  const Memory memory{shared_start(shared)};
  const int kv_head = blockIdx.x, batch = blockIdx.z, group = p.heads / p.kv_heads;
  const int tiles = tiles_of(p), begin = blockIdx.y * block_tiles;
  const int end = min(begin + block_tiles, tiles), last = min(end + 1, tiles);
  const int warpgroup = __shfl_sync(0xffffffff, threadIdx.x / WARPGROUP, 0);
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int my_row = threadIdx.x % WARPGROUP / 32 * 16;  // the warp's first row of a tile
  const uint32_t my_words = my_row * 128 + lane_of_words<64>(lane);
  const float log2_scale = p.scale * LOG2_E;

  // A warp's 16 rows of a panel, to 64 columns of a tensor.
  const auto store = [&](uint32_t panel, const View& view, int head, int column, int tile) {
    __syncwarp();
    store_rows<64>(panel + my_row * 128, head_of<T>(view, batch, head) + column, view.seq,
                   tile * ROWS + my_row, p.seq, lane);
    __syncwarp();
  };
  float d_k[2][8][4] = {}, d_v[2][8][4] = {};
  const auto write_keys = [&](int tile) {
#pragma unroll
    for (int panel = 0; panel < 2; ++panel) {
      put_tile<T, 64>(memory.weights(warpgroup) + my_words, d_k[panel], p.scale);
      store(memory.weights(warpgroup), p.d_k, kv_head, panel * 64, tile);
      put_tile<T, 64>(memory.weights(warpgroup) + my_words, d_v[panel], 1.0f);
      store(memory.weights(warpgroup), p.d_v, kv_head, panel * 64, tile);
    }
  };

  Loader<T> loader(p, memory, begin, end, last);
  loader.load_next(0);
  for (int stage = 0, tile = begin; tile < last; ++tile) {
    const bool begins = warpgroup == (tile & 1);  // a tile of keys
    const int key_tile = begins ? tile : tile - 1;
    Queries mine(p, batch, tile * ROWS + my_row + g);
#pragma unroll
    for (int half = 0; half < 2; ++half)  // rows beyond the sequence see nothing
      if (mine.row[half] >= p.seq) mine.lowest[half] = mine.row[half] + 1;

    for (int head = kv_head * group; head < (kv_head + 1) * group; ++head, ++stage) {
      wait_for_copies<0>();
      show_to_products();
      __syncthreads();

      float s[8][4], dp[8][4];
      begin_products();
      multiply_rows<T>(s, memory.q(stage), memory.keys(key_tile));
      commit_products();
      multiply_rows<T>(dp, memory.d_out(stage), memory.values(key_tile));
      commit_products();
      const int64_t row_of_head = (static_cast<int64_t>(batch) * p.heads + head) * p.seq;
      float lse[2], dot[2], delta[2] = {0.0f, 0.0f}, rest[2];
      T logit[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        lse[half] = p.lse[row_of_head + mine.index[half]];
        dot[half] = p.dot[row_of_head + mine.index[half]];
        logit[half] = head_of<T>(p.gate, batch, head)[mine.index[half] * p.gate.seq];
      }
      loader.load_next(stage + 1);  // where the stage before this one was
      wait_for_products<1>();
      settle(s);
      lse[0] *= LOG2_E, lse[1] *= LOG2_E;
#pragma unroll
      for (int n = 0; n < 8; ++n)
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const bool seen = mine.sees(c >> 1, key_tile * ROWS + 2 * t, 8 * n + (c & 1));
          s[n][c] = seen ? exp2_fast(s[n][c] * log2_scale - lse[c >> 1]) : 0.0f;
        }
      wait_for_products<0>();
      settle(dp);
#pragma unroll
      for (int n = 0; n < 8; ++n)
#pragma unroll
        for (int c = 0; c < 4; ++c) delta[c >> 1] += s[n][c] * dp[n][c];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        delta[half] = quad_sum(delta[half]);
        if (t == 0)
          write_word(memory.delta(warpgroup, my_row + g + 8 * half), __float_as_uint(delta[half]));
        rest[half] = sigmoid(-Half<T>::to_float(logit[half]));
      }
      __syncthreads();
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = my_row + g + 8 * half;
        delta[half] = __uint_as_float(read_word(memory.delta(0, row))) +
                      __uint_as_float(read_word(memory.delta(1, row)));
      }
#pragma unroll
      for (int n = 0; n < 8; ++n)
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          s[n][c] *= rest[c >> 1];
          dp[n][c] = s[n][c] * (dp[n][c] - delta[c >> 1]);
        }
      put_tile<T, 64>(memory.weights(warpgroup) + my_words, s, 1.0f);
      put_tile<T, 64>(memory.d_scores(warpgroup) + my_words, dp, 1.0f);
      show_to_products();
      __syncthreads();

      float d_q[8][4];
      begin_products();
#pragma unroll
      for (int other = 0; other < 2; ++other) {
        const int its_keys = other == (tile & 1) ? tile : tile - 1;
        multiply<T, ALONG_ROWS, ACROSS>(d_q, memory.d_scores(other),
                                        memory.keys(its_keys) + warpgroup * PANEL, other);
      }
      commit_products();
      // what a warpgroup has of the tile before `begin` is another block's: it is never written
      const bool add = head > kv_head * group || (!begins && tile > begin);
      multiply<T, ACROSS, ACROSS>(d_v, memory.weights(warpgroup), memory.d_out(stage), add);
      multiply<T, ACROSS, ACROSS>(d_k, memory.d_scores(warpgroup), memory.q(stage), add);
      commit_products();
      const uint32_t target = memory.d_q(stage) + warpgroup * PANEL;
      const auto place = [&](int n, int half) {
        return ((target + my_words) ^ (n * 16)) + half * 8 * 128;
      };
      // the global branch's part of dq, read while the products run: else this is mix_tile
      uint32_t theirs[8][2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (tile < end && half == warpgroup && t == 0 && mine.row[half] < p.seq)
          head_of<T>(p.d_gate, batch, head)[mine.row[half] * p.d_gate.seq] =
              Half<T>::from_float(sigmoid(Half<T>::to_float(logit[half])) * rest[half] *
                                  (dot[half] - delta[half]));
#pragma unroll
        for (int n = 0; n < 8; ++n) theirs[n][half] = read_word(place(n, half));
      }
      wait_for_products<1>();
      settle(d_q);
      if (tile < end) {
#pragma unroll
        for (int n = 0; n < 8; ++n)
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const float2 x = Half<T>::unpack(theirs[n][half]);
            write_word(place(n, half), Half<T>::pack(p.scale * d_q[n][2 * half] + x.x,
                                                     p.scale * d_q[n][2 * half + 1] + x.y));
          }
        store(target, p.d_q, head, warpgroup * 64, tile);
      }
      wait_for_products<0>();
      settle(d_v[0]), settle(d_v[1]), settle(d_k[0]), settle(d_k[1]);
    }
    __syncthreads();  // nobody reads weights any more
    if (!begins && tile > begin) write_keys(tile - 1);
  }
  if (end == tiles && warpgroup == ((tiles - 1) & 1)) write_keys(tiles - 1);
}

#else  // the host, and other GPUs, which are not asked to run it

template <typename T>
__global__ void __launch_bounds__(THREADS, 1) window_backward_sm90(const GatedWindow, const int) {
  __trap();
}

#endif

// The number of tiles of a block that takes least time; a block works for one tile more.
int choose_tiles(const GatedWindow& p, int processors) {
  const int tiles = tiles_of(p);
  const int64_t chains = static_cast<int64_t>(p.kv_heads) * p.batch;
  int best = tiles;
  int64_t least = INT64_MAX;
  for (int waves = 1; waves <= 8; ++waves) {
    const int parts = std::max<int64_t>(1, waves * processors / chains);
    const int length = (tiles + parts - 1) / parts;
    const int64_t blocks = chains * ((tiles + length - 1) / length);
    const int64_t time = (blocks + processors - 1) / processors * (length + 1);
    if (time < least) least = time, best = length;
  }
  return best;
}

}  // namespace sm90
}  // namespace

cudaError_t gated_window_backward_sm90(const GatedWindow& p, int processors, cudaStream_t stream) {
  using namespace sm90;
  const int length = choose_tiles(p, processors);
  const dim3 grid(p.kv_heads, (tiles_of(p) + length - 1) / length, p.batch);
  return start(p.is_bf16 ? window_backward_sm90<__nv_bfloat16> : window_backward_sm90<__half>,
               grid, THREADS, BYTES, stream, p, length);
}

}  // namespace loopcoder
