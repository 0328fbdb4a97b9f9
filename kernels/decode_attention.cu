// Attention of one token in all loops at once, after Flash-Decoding: blocks share the tokens of a
// place, and a second kernel puts their sums together and mixes them by the gate.
//
// All queries of a K/V head are rows of one tile, heads of loop 0 first, so that keys and values of
// the cache are read once whatever the number of loops (up to 16 rows; beyond that once for each
// 16). A further block has the ring of a later loop. A warp takes 16 tokens at a time, which it
// loads, and waits for, by itself.
#include "decode_attention.h"

#include "decode.cuh"
#include "launch.cuh"
#include "tile.cuh"

#include <algorithm>

namespace loopcoder {
namespace {

using T = __nv_bfloat16;

constexpr int WARPS = 4, THREADS = 32 * WARPS, STAGES = 3, ROWS = 16, TOKENS = 16;
constexpr float LOG2_E = 1.4426950408889634f;

template <int D>
constexpr int TILE_BYTES = TOKENS * D * static_cast<int>(sizeof(T));
template <int D>
constexpr int WARP_BYTES = STAGES * 2 * TILE_BYTES<D>;

// What a block has: some queries, and the tokens first..end-1 of what is kept.
struct Work {
  const DecodeAttention& p;
  const int split = blockIdx.x, batch = blockIdx.z, group, kv_head, first_row;
  bool is_ring;
  int first_loop, rows, first, end;
  int64_t kept;  // offset of the K/V head's first token

  __device__ explicit Work(const DecodeAttention& p)
      : p(p),
        group(p.heads / p.kv_heads),
        kv_head(blockIdx.y % p.kv_heads),
        first_row(blockIdx.y / p.kv_heads * ROWS) {
    const int place = static_cast<int>(p.places[batch]);
    const int length = static_cast<int>(p.positions[batch]) + 1;
    is_ring = split >= p.splits;
    first_loop = is_ring ? split - p.splits + 1 : 0;
    rows = min((is_ring ? group : p.loops * group) - first_row, ROWS);
    const Kept& from = cache();
    kept = place * from.place + (is_ring ? first_loop - 1 : 0) * from.loop + kv_head * from.head;
    const int seen = min(length, from.tokens);
    const int share = is_ring ? seen : (seen + p.splits * TOKENS - 1) / (p.splits * TOKENS) * TOKENS;
    first = min(is_ring ? 0 : split * share, seen), end = min(first + share, seen);
  }
  __device__ const Kept& cache() const { return is_ring ? p.ring : p.all; }
  __device__ const T* keys() const { return static_cast<const T*>(cache().k) + kept; }
  __device__ const T* values() const { return static_cast<const T*>(cache().v) + kept; }
  // Index of a row in [batch, loops, heads].
  __device__ int64_t at_row(int row) const {
    const int query = first_row + min(row, rows - 1);
    const int64_t loop = static_cast<int64_t>(batch) * p.loops + first_loop + query / group;
    return loop * p.heads + kv_head * group + query % group;
  }
  // Index of a row's sums.
  __device__ int64_t at_sums(int row) const {
    return at_row(row) * (p.splits + 1) + min(split, p.splits);
  }
};

template <int D>
__global__ void __launch_bounds__(THREADS) decode_attend(const DecodeAttention p) {
  extern __shared__ __align__(1024) unsigned char memory[];
  __shared__ float tops[WARPS][ROWS], totals[WARPS][ROWS];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const uint32_t tiles = shared_start(memory) + warp * WARP_BYTES<D>;
  wait_for_inputs();
  let_next_begin();
  const Work work(p);
  if (work.rows <= 0) return;
  const T *const keys = work.keys(), *const values = work.values();
  const int blocks = (work.end - work.first + TOKENS - 1) / TOKENS;
  const auto load = [&](int block, int stage) {
    if (block < blocks) {
      const uint32_t tile = tiles + stage * 2 * TILE_BYTES<D>;
      const int token = work.first + block * TOKENS;
      load_rows<D>(tile, keys, D, token, TOKENS, work.end, lane, 32);
      load_rows<D>(tile + TILE_BYTES<D>, values, D, token, TOKENS, work.end, lane, 32);
    }
    commit_copies();
  };
#pragma unroll
  for (int i = 0; i < STAGES - 1; ++i) load(warp + i * WARPS, i);
  Rows<D> q;
  const T* const queries = static_cast<const T*>(p.q);
  q.from_memory(queries + work.at_row(g) * D, queries + work.at_row(g + 8) * D, t);

  const float log2_scale = p.scale * LOG2_E;
  float out[D / 8][4] = {}, top[2] = {-INFINITY, -INFINITY}, total[2] = {0.0f, 0.0f};
  int stage = 0;
  for (int block = warp; block < blocks; block += WARPS) {
    wait_for_copies<STAGES - 2>();
    __syncwarp();  // copies of all lanes are there, and the stage before has been read
    load(block + (STAGES - 1) * WARPS, (stage + STAGES - 1) % STAGES);
    const uint32_t tile = tiles + stage * 2 * TILE_BYTES<D>;
    stage = (stage + 1) % STAGES;
    float s[2][4], rescale[2];
    dots<T, D>(s, q, tile + lane_of_dots<D>(lane), 0);
    uint32_t weights[4];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float new_top = top[half];
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int c = 2 * half; c < 2 * half + 2; ++c) {
          const int token = work.first + block * TOKENS + 8 * n + 2 * t + (c & 1);
          s[n][c] = token < work.end ? s[n][c] * log2_scale : -INFINITY;
          new_top = fmaxf(new_top, s[n][c]);
        }
      new_top = quad_max(new_top);  // a number: the first token of a block exists
      rescale[half] = exp2_fast(top[half] - new_top);
      top[half] = new_top, total[half] *= rescale[half];
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const float x = exp2_fast(s[n][2 * half] - new_top);
        const float y = exp2_fast(s[n][2 * half + 1] - new_top);
        total[half] += x + y;
        weights[2 * n + half] = Half<T>::pack(x, y);
      }
    }
#pragma unroll
    for (int n = 0; n < D / 8; ++n)
#pragma unroll
      for (int c = 0; c < 4; ++c) out[n][c] *= rescale[c >> 1];
    add_product<T, D>(out, weights, tile + TILE_BYTES<D> + lane_of_rows<D>(lane), 0);
  }

  // The warps' sums, under the largest of their tops, where their tiles were.
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    total[half] = quad_sum(total[half]);
    if (t == 0) tops[warp][g + 8 * half] = top[half], totals[warp][g + 8 * half] = total[half];
  }
  wait_for_copies<0>();
  __syncthreads();
  static_assert(ROWS * D * sizeof(float) <= WARP_BYTES<D>, "the sums do not fit over the tiles");
  const auto sums_of = [&](int which) {
    return reinterpret_cast<float*>(memory + which * WARP_BYTES<D>);
  };
  const auto top_of = [&](int row) {
    float most = tops[0][row];
#pragma unroll
    for (int i = 1; i < WARPS; ++i) most = fmaxf(most, tops[i][row]);
    return most;
  };
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = g + 8 * half;
    const float factor = top[half] == -INFINITY ? 0.0f : exp2_fast(top[half] - top_of(row));
#pragma unroll
    for (int n = 0; n < D / 8; ++n)
#pragma unroll
      for (int c = 0; c < 2; ++c)
        sums_of(warp)[row * D + 8 * n + 2 * t + c] = factor * out[n][2 * half + c];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < work.rows * D; i += THREADS) {
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < WARPS; ++j) sum += sums_of(j)[i];
    p.sums[work.at_sums(i / D) * D + i % D] = sum;
  }
  if (threadIdx.x < work.rows) {
    const int row = threadIdx.x;
    const float most = top_of(row);
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < WARPS; ++j)
      if (tops[j][row] != -INFINITY) sum += totals[j][row] * exp2_fast(tops[j][row] - most);
    p.stats[work.at_sums(row) * 2] = most;
    p.stats[work.at_sums(row) * 2 + 1] = sum;
  }
}

// A block has a head of a loop, a thread a number of it.
template <int D>
__global__ void __launch_bounds__(D) decode_mix(const DecodeAttention p) {
  __shared__ float weights[DECODE_MAX_SPLITS];
  const int head = blockIdx.x, loop = blockIdx.y, batch = blockIdx.z, lane = threadIdx.x;
  wait_for_inputs();
  let_next_begin();
  const int64_t row = (static_cast<int64_t>(batch) * p.loops + loop) * p.heads + head;
  const float* const stats = p.stats + row * (p.splits + 1) * 2;
  const float* const sums = p.sums + row * (p.splits + 1) * D + threadIdx.x;
  if (lane < 32) {
    constexpr int OF_A_LANE = DECODE_MAX_SPLITS / 32;
    float top[OF_A_LANE], weight[OF_A_LANE], most = -INFINITY, all = 0.0f;
#pragma unroll
    for (int i = 0; i < OF_A_LANE; ++i) {
      const int split = lane + 32 * i;
      top[i] = split < p.splits ? stats[2 * split] : -INFINITY;
      most = fmaxf(most, top[i]);
    }
    most = warp_max(most);
#pragma unroll
    for (int i = 0; i < OF_A_LANE; ++i) {
      const int split = lane + 32 * i;
      weight[i] = top[i] == -INFINITY ? 0.0f : exp2_fast(top[i] - most);
      if (split < p.splits) all += weight[i] * stats[2 * split + 1];
    }
    all = warp_sum(all);
#pragma unroll
    for (int i = 0; i < OF_A_LANE; ++i) weights[lane + 32 * i] = weight[i] / all;
  }
  __syncthreads();
  float out = 0.0f;
#pragma unroll 8
  for (int split = 0; split < p.splits; ++split) out += weights[split] * sums[split * D];
  if (loop > 0) {
    const float g = sigmoid(Half<T>::to_float(
        static_cast<const T*>(p.gate)[batch * p.gate_batch + (loop - 1) * p.gate_loop + head]));
    const float near = sums[p.splits * D] / stats[2 * p.splits + 1];
    out = g * out + (1.0f - g) * near;
  }
  static_cast<T*>(p.out)[row * D + threadIdx.x] = Half<T>::from_float(out);
}

constexpr int ROTATING_WARPS = 4;

// A warp has a query head, a K or a V of one loop; a lane D/64 pairs of neighbours in each half.
template <int D>
__global__ void __launch_bounds__(32 * ROTATING_WARPS) decode_rope(const DecodeAttention p) {
  const int group = p.heads / p.kv_heads, parts = p.kv_heads * (group + 2);
  const int part = blockIdx.x * ROTATING_WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
  const int loop = blockIdx.y, batch = blockIdx.z, kv_head = part / (group + 2);
  const int which = part % (group + 2);  // a query head; K; V
  wait_for_inputs();
  let_next_begin();
  if (part >= parts) return;
  const int64_t row = static_cast<int64_t>(batch) * p.loops + loop;
  const T* const from = static_cast<const T*>(p.qkv) + (row * parts + part) * D;
  T* to;
  if (which < group) {
    to = static_cast<T*>(p.q) + (row * p.heads + kv_head * group + which) * D;
  } else {
    const Kept& into = loop == 0 ? p.all : p.ring;
    const int64_t position = p.positions[batch];
    const int64_t token = loop == 0 ? position : position % into.tokens;
    to = static_cast<T*>(which == group ? into.k : into.v) + p.places[batch] * into.place +
         (loop == 0 ? 0 : loop - 1) * into.loop + kv_head * into.head + token * D;
  }
  const float *const cos = p.cos + batch * D, *const sin = p.sin + batch * D;
#pragma unroll
  for (int i = 2 * lane; i < D / 2; i += 64) {
    const auto word = [](auto* x) { return reinterpret_cast<uint32_t*>(const_cast<T*>(x)); };
    uint32_t low = *word(from + i), high = *word(from + i + D / 2);
    if (which <= group) {
      const float2 x = Half<T>::unpack(low), y = Half<T>::unpack(high);
      low = Half<T>::pack(x.x * cos[i] - y.x * sin[i], x.y * cos[i + 1] - y.y * sin[i + 1]);
      high = Half<T>::pack(y.x * cos[i] + x.x * sin[i], y.y * cos[i + 1] + x.y * sin[i + 1]);
    }
    *word(to + i) = low, *word(to + i + D / 2) = high;
  }
}

// Of 16 queries of a K/V head.
int tiles_of(const DecodeAttention& p) {
  return (p.loops * (p.heads / p.kv_heads) + ROWS - 1) / ROWS;
}

template <int D>
cudaError_t rotate(const DecodeAttention& p, const Device& device, cudaStream_t stream) {
  const int parts = p.heads + 2 * p.kv_heads;
  const dim3 grid((parts + ROTATING_WARPS - 1) / ROTATING_WARPS, p.loops, p.batch);
  return start_early(decode_rope<D>, grid, 32 * ROTATING_WARPS, 0, stream, device.is_sm90, p);
}

template <int D>
cudaError_t attention(const DecodeAttention& p, const Device& device, cudaStream_t stream) {
  const dim3 grid(p.splits + p.loops - 1, p.kv_heads * tiles_of(p), p.batch);
  constexpr size_t bytes = WARPS * WARP_BYTES<D>;
  static_assert(bytes <= SHARED_BYTES_80, "the stages do not fit into shared memory");
  const cudaError_t failed =
      start_early(decode_attend<D>, grid, THREADS, bytes, stream, device.is_sm90, p);
  if (failed != cudaSuccess) return failed;
  return start_early(decode_mix<D>, dim3(p.heads, p.loops, p.batch), D, 0, stream, device.is_sm90,
                     p);
}

}  // namespace

cudaError_t decode_splits(const DecodeAttention& args, int* splits) {
  constexpr int LEAST = WARPS * TOKENS, BLOCKS_OF_A_PROCESSOR = 2;
  Device device;
  if (const cudaError_t failed = device.ask(); failed != cudaSuccess) return failed;
  const int useful = (args.all.tokens + LEAST - 1) / LEAST;
  const int64_t others = static_cast<int64_t>(args.kv_heads) * tiles_of(args) * args.batch;
  const auto busy = static_cast<int>(BLOCKS_OF_A_PROCESSOR * device.processors / others);
  *splits = std::max(1, std::min({useful, busy, DECODE_MAX_SPLITS}));
  return cudaSuccess;
}

cudaError_t decode_rotate(const DecodeAttention& args, cudaStream_t stream) {
  Device device;
  if (const cudaError_t failed = device.ask(); failed != cudaSuccess) return failed;
  return args.head_dim == 64 ? rotate<64>(args, device, stream) : rotate<128>(args, device, stream);
}

cudaError_t decode_attention(const DecodeAttention& args, cudaStream_t stream) {
  Device device;
  if (const cudaError_t failed = device.ask(); failed != cudaSuccess) return failed;
  return args.head_dim == 64 ? attention<64>(args, device, stream)
                             : attention<128>(args, device, stream);
}

}  // namespace loopcoder
