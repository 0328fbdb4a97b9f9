// The backward pass of the gated window.
//
// With W = window branch, P its weights, dO the gradient of the output:
//   dP = dO v^T                    delta = sum_keys P * dP  ( = <dO, W> )
//   d_gate = g (1-g) (<dO, global> - delta)
//   dS = (1-g) P (dP - delta)      dq = dS k * scale     dk = dS^T q * scale     dv = (1-g) P^T dO
// `prepare` makes g dO, which the global branch needs before all else, and <dO, global>; `queries`
// gives every warp 16 queries and sums over keys; `keys` gives it 16 keys and sums over queries of
// all heads. There are no atomics: the result is the same bit for bit every time.
// On Hopper, for head_dim 128 and windows up to 64, gated_window_backward_sm90.cu does the work of
// both.
#include "gated_window.cuh"
#include "launch.cuh"
#include "query_block.cuh"
#include "tile.cuh"

namespace loopcoder {
namespace {

// ---------------------------------------------------------------------------------------------

constexpr int PREPARE_THREADS = 256;

// A lane has 8 numbers; D/8 lanes a row of one head.
template <typename T, int D>
__global__ void __launch_bounds__(PREPARE_THREADS)
    window_prepare(const View d_out, const View other, const View gate, const View scaled,
                   float* dot, int seq, int batch, int heads) {
  constexpr int CHUNKS = D / 8;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * PREPARE_THREADS + threadIdx.x;
  const int chunk = i % CHUNKS;
  // rows beyond the last are computed as the last one, so that all lanes take part in the sum
  const int64_t rows = static_cast<int64_t>(seq) * batch * heads;
  const int64_t row = min(i / CHUNKS, rows - 1);
  const int head = row % heads, b = row / heads % batch;
  const int64_t s = row / heads / batch;
  const auto place = [&](const View& x) { return head_of<T>(x, b, head) + s * x.seq + chunk * 8; };
  uint32_t x[4], y[4];
  unpack_words(x, __ldg(reinterpret_cast<const uint4*>(place(d_out))));
  unpack_words(y, __ldg(reinterpret_cast<const uint4*>(place(other))));
  const float g = sigmoid(logit_of<T>(gate, s, b, head));
  float sum = 0.0f;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const float2 left = Half<T>::unpack(x[j]), right = Half<T>::unpack(y[j]);
    sum += left.x * right.x + left.y * right.y;
    x[j] = Half<T>::pack(g * left.x, g * left.y);
  }
#pragma unroll
  for (int distance = CHUNKS / 2; distance > 0; distance /= 2)
    sum += __shfl_xor_sync(0xffffffff, sum, distance);
  if (i / CHUNKS >= rows) return;
  write_global(place(scaled), make_uint4(x[0], x[1], x[2], x[3]));
  if (chunk == 0) dot[(static_cast<int64_t>(b) * heads + head) * seq + s] = sum;
}

struct Prepare {
  template <typename T, int D>
  static cudaError_t launch(const GatedWindow& p, cudaStream_t stream) {
    const int64_t pieces = static_cast<int64_t>(p.seq) * p.batch * p.heads * (D / 8);
    const unsigned blocks = static_cast<unsigned>((pieces + PREPARE_THREADS - 1) / PREPARE_THREADS);
    return start(window_prepare<T, D>, blocks, PREPARE_THREADS, 0, stream, p.d_out, p.global_out,
                 p.gate, p.out, p.dot, p.seq, p.batch, p.heads);
  }
};

// ---------------------------------------------------------------------------------------------

namespace queries {

constexpr int WARPS = 4, TILES = 3;
template <typename T, int D>
using Block = QueryBlock<T, D, WARPS, TILES>;

// Weights and their gradients of 16 queries and up to HELD blocks of keys.
template <typename T, int D, bool ONE_PASS>
struct Scores {
  static constexpr int BLOCK_BYTES = 16 * D * sizeof(T);
  float p[HELD][2][4], dp[HELD][2][4];

  // Adds this lane's part of sum P * dP of both rows to `delta`. `row` is the first key's in the
  // tiles, in bytes; first_key is the lane's.
  __device__ void compute(float (&delta)[2], const Rows<D>& q, const Rows<D>& d_out,
                          uint32_t lane_keys, uint32_t lane_values, const Queries& mine,
                          const float (&lse)[2], float log2_scale, int row, int first_key,
                          int blocks) {
#pragma unroll
    for (int j = 0; j < HELD; ++j) {
      if (ONE_PASS || j < blocks) {
        dots<T, D>(p[j], q, lane_keys, row + j * BLOCK_BYTES);
        dots<T, D>(dp[j], d_out, lane_values, row + j * BLOCK_BYTES);
      }
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const int half = c >> 1, offset = 16 * j + 8 * n + (c & 1);
          const bool seen = (ONE_PASS || j < blocks) && mine.sees(half, first_key, offset);
          p[j][n][c] = seen ? exp2_fast(p[j][n][c] * log2_scale - lse[half]) : 0.0f;
          if (!ONE_PASS && j >= blocks) dp[j][n][c] = 0.0f;
          delta[half] += p[j][n][c] * dp[j][n][c];
        }
    }
  }
};

template <typename T, int D, bool ONE_PASS>
__global__ void __launch_bounds__(32 * WARPS, 2)
    window_backward_queries(const GatedWindow p, const int reach) {
  constexpr int BLOCK_BYTES = Block<T, D>::BLOCK_BYTES;
  extern __shared__ __align__(1024) unsigned char memory[];
  const Block<T, D> all(p, ONE_PASS ? 16 * (HELD - 1) : reach, memory);
  const int blocks = all.blocks, batch = all.batch, lane = all.lane, t = all.t;
  const uint32_t q_tile = all.tiles;
  const uint32_t d_out_tile = q_tile + BLOCK_BYTES;
  const uint32_t d_q_tile = d_out_tile + BLOCK_BYTES;  // the global branch's part, then the sum
  all.load_keys();
  all.load(q_tile, p.q, all.warp);
  all.load(d_out_tile, p.d_out, all.warp);
  commit_copies();
  all.load(d_q_tile, p.d_q, all.warp);
  commit_copies();
  const uint32_t lane_keys = all.keys + lane_of_dots<D>(lane);
  const uint32_t lane_values = all.values + lane_of_dots<D>(lane);
  const uint32_t product_keys = all.keys + lane_of_rows<D>(lane);
  const float log2_scale = p.scale * LOG2_E;
  wait_for_copies<1>();
  __syncthreads();

  for (int i = all.warp; i < all.items; i += WARPS) {
    const int head = all.head(i), first_key = all.first(i) - all.reach + 2 * t;
    const Queries mine(p, batch, all.first(i) + all.g);
    const int64_t row_of_head = (static_cast<int64_t>(batch) * p.heads + head) * p.seq;
    float delta[2] = {0.0f, 0.0f}, lse[2], logit[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      lse[half] = p.lse[row_of_head + mine.index[half]] * LOG2_E;
      logit[half] = logit_of<T>(p.gate, mine.index[half], batch, head);
    }
    Rows<D> q, d_out;
    wait_for_copies<1>();  // all but the global branch's dq
    __syncwarp();
    q.from_tile(q_tile + lane_of_rows<D>(lane));
    d_out.from_tile(d_out_tile + lane_of_rows<D>(lane));
    __syncwarp();
    all.load(q_tile, p.q, i + WARPS);
    all.load(d_out_tile, p.d_out, i + WARPS);
    commit_copies();
    Scores<T, D, ONE_PASS> scores;
    for (int block = 0; block < (ONE_PASS ? 1 : blocks); block += HELD)
      scores.compute(delta, q, d_out, lane_keys, lane_values, mine, lse, log2_scale,
                     (all.row_block(i) + block) * BLOCK_BYTES, first_key + 16 * block, blocks - block);
    delta[0] = quad_sum(delta[0]), delta[1] = quad_sum(delta[1]);
    float d_q[D / 8][4] = {};
    for (int block = 0; block < (ONE_PASS ? 1 : blocks); block += HELD) {
      const int base = (all.row_block(i) + block) * BLOCK_BYTES;
      if (!ONE_PASS) {
        float again[2] = {0.0f, 0.0f};
        scores.compute(again, q, d_out, lane_keys, lane_values, mine, lse, log2_scale, base,
                       first_key + 16 * block, blocks - block);
      }
      uint32_t d_scores[HELD][4];
#pragma unroll
      for (int j = 0; j < HELD; ++j)
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const float* const w = scores.p[j][n] + 2 * half;
            const float* const dw = scores.dp[j][n] + 2 * half;
            d_scores[j][2 * n + half] =
                Half<T>::pack(w[0] * (dw[0] - delta[half]), w[1] * (dw[1] - delta[half]));
          }
#pragma unroll
      for (int j = 0; j < HELD; ++j)
        if (ONE_PASS || block + j < blocks)
          add_product<T, D>(d_q, d_scores[j], product_keys, base + j * BLOCK_BYTES);
    }
    float weight[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float rest = sigmoid(-logit[half]);
      weight[half] = rest * p.scale;
      const int row = mine.row[half];
      if (t == 0 && row < p.seq) {
        p.stats[row_of_head + row] = {lse[half] - __log2f(rest), delta[half], mine.lowest[half], 0};
        head_of<T>(p.d_gate, batch, head)[row * p.d_gate.seq] = Half<T>::from_float(
            sigmoid(logit[half]) * rest * (p.dot[row_of_head + row] - delta[half]));
      }
    }
    wait_for_copies<1>();  // all but the next q and dO
    __syncwarp();
    mix_tile<T, D>(d_q_tile + lane_of_words<D>(lane), d_q, weight, {1.0f, 1.0f});
    __syncwarp();
    all.store(d_q_tile, p.d_q, i);
    __syncwarp();
    all.load(d_q_tile, p.d_q, i + WARPS);
    commit_copies();
  }
}

}  // namespace queries

// ---------------------------------------------------------------------------------------------

namespace keys {

constexpr int WARPS = 8, KEYS = 16 * WARPS, THREADS = 32 * WARPS;

// Stages of `rows` queries of one head: q, dO and what `queries` left of each row.
template <typename T, int D>
struct Stages {
  int count, rows;

  static __host__ __device__ constexpr size_t bytes(int rows) {
    return rows * (2 * D * sizeof(T) + sizeof(RowStats));
  }
  __device__ uint32_t q(uint32_t memory, int i) const { return memory + i % count * bytes(rows); }
  __device__ uint32_t d_out(uint32_t memory, int i) const {
    return q(memory, i) + rows * D * sizeof(T);
  }
  __device__ uint32_t stats(uint32_t memory, int i) const {
    return d_out(memory, i) + rows * D * sizeof(T);
  }
  __device__ void load(uint32_t memory, int i, const GatedWindow& p, int batch, int head,
                       int first) const {
    load_rows<D>(q(memory, i), head_of<T>(p.q, batch, head), p.q.seq, first, rows, p.seq,
                 threadIdx.x, THREADS);
    load_rows<D>(d_out(memory, i), head_of<T>(p.d_out, batch, head), p.d_out.seq, first, rows,
                 p.seq, threadIdx.x, THREADS);
    const RowStats* const of_head =
        p.stats + (static_cast<int64_t>(batch) * p.heads + head) * p.seq;
    for (int row = threadIdx.x; row < rows; row += THREADS) {
      const bool inside = first + row < p.seq;
      copy_async(stats(memory, i) + row * sizeof(RowStats), of_head + (inside ? first + row : 0),
                 inside);
    }
  }
};

// The stages that a block goes through: KEYS keys of one K/V head after the other, and for these
// the heads of each piece of queries that see them.
struct Walk {
  int item, i, total;  // stage i of `total` of this item
  int kv_head, first_key, batch;

  __device__ Walk(const GatedWindow& p, int reach, int rows) : item(blockIdx.x), i(0) {
    begin(p, reach, rows);
  }
  __host__ __device__ static int items(const GatedWindow& p) {
    return p.kv_heads * ((p.seq + KEYS - 1) / KEYS) * p.batch;
  }
  __device__ void begin(const GatedWindow& p, int reach, int rows) {
    const int blocks = (p.seq + KEYS - 1) / KEYS;
    kv_head = item % p.kv_heads;
    first_key = item / p.kv_heads % blocks * KEYS;
    batch = item / p.kv_heads / blocks;
    // queries first_key..first_key+KEYS-1+window see keys of this item
    const int last_query = min(p.seq, first_key + KEYS + reach);
    total = p.heads / p.kv_heads * ((last_query - first_key + rows - 1) / rows);
  }
  __device__ void next(const GatedWindow& p, int reach, int rows) {
    if (++i < total) return;
    i = 0;
    item += gridDim.x;
    begin(p, reach, rows);
  }
};

template <typename T, int D>
__global__ void __launch_bounds__(THREADS, 1)
    window_backward_keys(const GatedWindow p, const int reach, const Stages<T, D> stages) {
  extern __shared__ __align__(1024) unsigned char shared[];
  const uint32_t memory = shared_start(shared);
  const int group = p.heads / p.kv_heads, items = Walk::items(p);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const float log2_scale = p.scale * LOG2_E;

  Walk ahead(p, reach, stages.rows), now = ahead;
  int loaded = 0, used = 0;
  const auto load = [&] {
    if (ahead.item < items) {
      stages.load(memory, loaded++, p, ahead.batch, ahead.kv_head * group + ahead.i % group,
                  ahead.first_key + ahead.i / group * stages.rows);
      ahead.next(p, reach, stages.rows);
    }
    commit_copies();
  };
  load();

  for (; now.item < items; now.item += gridDim.x) {
    now.begin(p, reach, stages.rows);
    const int my_first = now.first_key + 16 * warp, key = my_first + g;
    Rows<D> k, v;
    {
      const int64_t low = min(key, p.seq - 1), high = min(key + 8, p.seq - 1);
      const T* const k_head = head_of<T>(p.k, now.batch, now.kv_head);
      const T* const v_head = head_of<T>(p.v, now.batch, now.kv_head);
      k.from_memory(k_head + low * p.k.seq, k_head + high * p.k.seq, t);
      v.from_memory(v_head + low * p.v.seq, v_head + high * p.v.seq, t);
    }
    float d_k[D / 8][4] = {}, d_v[D / 8][4] = {};
    for (int i = 0; i < now.total; ++i, ++used) {
      wait_for_copies<0>();
      __syncthreads();
      load();
      const int first_query = now.first_key + i / group * stages.rows;
      const uint32_t q = stages.q(memory, used), d_out = stages.d_out(memory, used);
      const uint32_t lane_stats = stages.stats(memory, used) + 2 * t * sizeof(RowStats);
      // blocks of 16 queries that see a key of this warp
      const int begin = max(0, my_first - first_query);
      const int end = min(min(stages.rows, my_first + reach + 16 - first_query),
                          p.seq - first_query);
#pragma unroll 1
      for (int row = begin; row < end; row += 16) {
        const int bytes = row * D * static_cast<int>(sizeof(T));
        float s[2][4], dp[2][4];
        dots<T, D>(s, k, q + lane_of_dots<D>(lane), bytes);
        dots<T, D>(dp, v, d_out + lane_of_dots<D>(lane), bytes);
        // from this lane's first key to its first query
        const int distance = first_query + row + 2 * t - key;
        const int queries_left = p.seq - (key + distance);
        uint32_t weights[4], d_scores[4];
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          float w[4], ds[4];
#pragma unroll
          for (int column = 0; column < 2; ++column) {
            const int query = 8 * n + column;
            const uint4 words =
                read_shared(lane_stats + (row + query) * static_cast<int>(sizeof(RowStats)));
            const float lse = __uint_as_float(words.x), delta = __uint_as_float(words.y);
            const int lowest = static_cast<int>(words.z);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
              const int c = 2 * half + column;
              const bool seen = key + 8 * half >= lowest && distance + query >= 8 * half &&
                                query < queries_left;
              w[c] = seen ? exp2_fast(s[n][c] * log2_scale - lse) : 0.0f;
              ds[c] = w[c] * (dp[n][c] - delta);
            }
          }
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            weights[2 * n + half] = Half<T>::pack(w[2 * half], w[2 * half + 1]);
            d_scores[2 * n + half] = Half<T>::pack(ds[2 * half], ds[2 * half + 1]);
          }
        }
        add_product<T, D>(d_v, weights, d_out + lane_of_rows<D>(lane), bytes);
        add_product<T, D>(d_k, d_scores, q + lane_of_rows<D>(lane), bytes);
      }
    }
    // through the stage that was used last, so that rows are written whole
    __syncthreads();
    const uint32_t tile = stages.q(memory, used - 1) + warp * 16 * D * sizeof(T);
    const auto write = [&](const float (&sum)[D / 8][4], float factor, const View& view) {
      put_tile<T, D>(tile + lane_of_words<D>(lane), sum, factor);
      __syncwarp();
      store_rows<D>(tile, head_of<T>(view, now.batch, now.kv_head), view.seq, my_first, p.seq,
                    lane);
      __syncwarp();
    };
    write(d_k, p.scale, p.d_k);
    write(d_v, 1.0f, p.d_v);
  }
}

// All queries of a block's keys in one stage where two such stages fit, else pieces of 64.
template <typename T, int D>
cudaError_t launch(const GatedWindow& p, int reach, const Device& device, cudaStream_t stream) {
  constexpr int COUNT = 2, PIECE = 64;
  static_assert(COUNT * Stages<T, D>::bytes(PIECE) <= SHARED_BYTES_80, "the pieces do not fit");
  Stages<T, D> stages{COUNT, KEYS + reach};
  const auto bytes = [&] { return stages.count * stages.bytes(stages.rows); };
  if (bytes() > static_cast<size_t>(device.shared_bytes)) stages.rows = PIECE;
  // one block per multiprocessor: the next keys' queries come while the last ones are worked on
  const int blocks = min(Walk::items(p), device.processors);
  return start(window_backward_keys<T, D>, blocks, THREADS, bytes(), stream, p, reach, stages);
}

}  // namespace keys

struct Backward {
  template <typename T, int D>
  static cudaError_t launch(const GatedWindow& p, cudaStream_t stream) {
    Device device;
    cudaError_t failed = device.ask();
    if (failed != cudaSuccess) return failed;
    if (device.is_sm90 && !p.portable && D == 128 && fits_one_pass(p.window))
      return gated_window_backward_sm90(p, device.processors, stream);
    failed = queries::Block<T, D>::launch(queries::window_backward_queries<T, D, true>,
                                          queries::window_backward_queries<T, D, false>, p, stream);
    if (failed != cudaSuccess) return failed;
    return keys::launch<T, D>(p, reach_of(p.window), device, stream);
  }
};

}  // namespace

cudaError_t gated_window_prepare(const GatedWindow& args, cudaStream_t stream) {
  return dispatch<Prepare>(args.is_bf16, args.head_dim, args, stream);
}

cudaError_t gated_window_backward(const GatedWindow& args, cudaStream_t stream) {
  return dispatch<Backward>(args.is_bf16, args.head_dim, args, stream);
}

}  // namespace loopcoder
