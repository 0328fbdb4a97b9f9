// The gate's logits, W RMSNorm(h) + b, in one pass over h; and their backward pass in another.
//
// With F = W * gamma and r = 1/rms(h), per row:
//   logits = r h F^T + b
//   dh = r (dL F) - r^2 h <dL, logits - b> / width
// and over all rows, with X = sum (r dL)^T h:
//   dW = X * gamma      d_gamma = sum over heads of W * X
// There are no atomics: the result is the same bit for bit every time.
#include "gate_logits.h"
#include "launch.cuh"
#include "tile.cuh"

namespace loopcoder {
namespace {

constexpr int COLUMNS = GATE_COLUMNS, ROWS = GATE_ROWS, ROW_BYTES = COLUMNS * 2;
constexpr int TILE_BYTES = ROWS * ROW_BYTES;

// ---------------------------------------------------------------------------------------------

namespace logits {

constexpr int PARTS = 2, WARPS = ROWS / 16 * PARTS, THREADS = 32 * WARPS;

// Stages of PARTS tiles of h, each with its tile of F.
template <int HEADS>
constexpr int STAGES = HEADS == 64 ? 4 : 3;
template <int HEADS>
constexpr int PART_BYTES = TILE_BYTES + HEADS * ROW_BYTES;

// A block has 64 rows of h and goes along the width, PARTS tiles at a time; a warp has 16 rows of
// one of them, and all heads.
template <typename T, int HEADS>
__global__ void __launch_bounds__(THREADS) gate_forward(const GateLogits p) {
  extern __shared__ __align__(1024) unsigned char memory[];
  const int part = threadIdx.x / (THREADS / PARTS), thread = threadIdx.x % (THREADS / PARTS);
  const int warp = thread / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int first_row = blockIdx.x * ROWS, tiles = p.width / COLUMNS;
  const uint32_t mine = shared_start(memory) + part * PART_BYTES<HEADS>;
  const auto place = [&](int tile) {
    return mine + tile / PARTS % STAGES<HEADS> * (PARTS * PART_BYTES<HEADS>);
  };
  const auto load = [&](int tile) {
    if (tile < tiles) {
      load_rows<COLUMNS>(place(tile), static_cast<const T*>(p.hidden) + tile * COLUMNS, p.width,
                         first_row, ROWS, p.rows, thread, THREADS / PARTS);
      load_rows<COLUMNS>(place(tile) + TILE_BYTES,
                         static_cast<const T*>(p.folded) + tile * COLUMNS, p.width, 0, HEADS,
                         p.heads, thread, THREADS / PARTS);
    }
    commit_copies();
  };
#pragma unroll
  for (int i = 0; i < STAGES<HEADS> - 1; ++i) load(i * PARTS + part);
  float sums[HEADS / 16][2][4] = {}, squares[2] = {};
  for (int first = 0; first < tiles; first += PARTS) {
    const int tile = first + part;
    wait_for_copies<STAGES<HEADS> - 2>();
    __syncthreads();
    load(tile + (STAGES<HEADS> - 1) * PARTS);
    if (tile >= tiles) continue;  // of the last stage, where tiles are odd in number
    Rows<COLUMNS> h;
    h.from_tile(place(tile) + warp * 16 * ROW_BYTES + lane_of_rows<COLUMNS>(lane));
    const uint32_t folded = place(tile) + TILE_BYTES + lane_of_dots<COLUMNS>(lane);
#pragma unroll
    for (int m = 0; m < HEADS / 16; ++m)
      if (16 * m < p.heads) add_dots<T, COLUMNS>(sums[m], h, folded, 16 * m * ROW_BYTES);
#pragma unroll
    for (int i = 0; i < COLUMNS / 16; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float2 x = Half<T>::unpack(h.a[i][j]);
        squares[j & 1] += x.x * x.x + x.y * x.y;
      }
  }
  wait_for_copies<0>();
  __syncthreads();  // the stages are free: the other parts' sums come there
  constexpr int NUMBERS = HEADS / 2 + 2;
  float* const theirs = reinterpret_cast<float*>(memory);
  const auto exchange = [&](int of_part, auto&& use) {
#pragma unroll
    for (int i = 0; i < NUMBERS; ++i) {
      float& x = i < 2 ? squares[i] : sums[(i - 2) / 8][(i - 2) / 4 % 2][(i - 2) % 4];
      use(x, theirs[((of_part - 1) * NUMBERS + i) * (THREADS / PARTS) + thread]);
    }
  };
  if (part > 0) exchange(part, [](float x, float& shared) { shared = x; });
  __syncthreads();
  if (part > 0) return;
#pragma unroll
  for (int other = 1; other < PARTS; ++other)
    exchange(other, [](float& x, float shared) { x += shared; });
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = first_row + 16 * warp + g + 8 * half;
    const float rms = rsqrtf(quad_sum(squares[half]) / p.width + p.eps);
    if (row >= p.rows) continue;
    if (t == 0) p.rms[row] = rms;
#pragma unroll
    for (int m = 0; m < HEADS / 16; ++m)
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int head = 16 * m + 8 * n + 2 * t + c;
          if (head >= p.heads) continue;
          const int64_t index = static_cast<int64_t>(row) * p.heads + head;
          const float raw = rms * sums[m][n][2 * half + c];
          p.raw[index] = raw;
          static_cast<T*>(p.logits)[index] = Half<T>::from_float(
              raw + Half<T>::to_float(static_cast<const T*>(p.bias)[head]));
        }
  }
}

}  // namespace logits

// ---------------------------------------------------------------------------------------------

constexpr int PREPARE_ROWS = 8;

// A warp has a row.
template <typename T, int HEADS>
__global__ void __launch_bounds__(32 * PREPARE_ROWS) gate_prepare(const GateLogits p) {
  const int row = blockIdx.x * PREPARE_ROWS + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (row >= p.rows) return;
  const float rms = p.rms[row];
  float sum = 0.0f;
#pragma unroll
  for (int head = lane; head < HEADS; head += 32) {
    float scaled = 0.0f;
    if (head < p.heads) {
      const int64_t place = static_cast<int64_t>(row) * p.heads + head;
      const float d_logit = Half<T>::to_float(static_cast<const T*>(p.d_logits)[place]);
      sum += d_logit * p.raw[place];
      scaled = d_logit * rms;
    }
    static_cast<T*>(p.scaled)[static_cast<int64_t>(row) * HEADS + head] =
        Half<T>::from_float(scaled);
  }
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2)
    sum += __shfl_xor_sync(0xffffffff, sum, distance);
  if (lane == 0) p.along[row] = rms * rms * sum / p.width;
}

// ---------------------------------------------------------------------------------------------

namespace gradients {

constexpr int STAGES = 4, WARPS = ROWS / 16, THREADS = 32 * WARPS;

// A block has 64 columns of h and goes down its part of the rows, 64 at a time. Of these a warp
// has 16 rows for dh, and 16 columns for X.
template <typename T, int HEADS>
__global__ void __launch_bounds__(THREADS) gate_backward(const GateLogits p) {
  constexpr int STAGE_BYTES = TILE_BYTES + ROWS * HEADS * 2;
  extern __shared__ __align__(1024) unsigned char memory[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int first_column = blockIdx.x * COLUMNS;
  const int tiles = (p.rows + ROWS - 1) / ROWS, of_part = (tiles + p.parts - 1) / p.parts;
  const int begin = blockIdx.y * of_part, end = min(begin + of_part, tiles);
  const uint32_t folded = shared_start(memory), stages = folded + HEADS * ROW_BYTES;
  const T* const hidden = static_cast<const T*>(p.hidden) + first_column;
  T* const d_hidden = static_cast<T*>(p.d_hidden) + first_column;
  const auto load = [&](int tile) {
    if (tile < end) {
      const uint32_t stage = stages + tile % STAGES * STAGE_BYTES;
      load_rows<COLUMNS>(stage, hidden, p.width, tile * ROWS, ROWS, p.rows, threadIdx.x, THREADS);
      load_rows<HEADS>(stage + TILE_BYTES, static_cast<const T*>(p.scaled), HEADS, tile * ROWS,
                       ROWS, p.rows, threadIdx.x, THREADS);
    }
    commit_copies();
  };
  load_rows<COLUMNS>(folded, static_cast<const T*>(p.folded) + first_column, p.width, 0, HEADS,
                     p.heads, threadIdx.x, THREADS);
#pragma unroll
  for (int i = 0; i < STAGES - 1; ++i) load(begin + i);
  float x[HEADS / 8][4] = {};
  for (int tile = begin; tile < end; ++tile) {
    const uint32_t h_tile = stages + tile % STAGES * STAGE_BYTES, scaled = h_tile + TILE_BYTES;
    const int first = tile * ROWS + 16 * warp;
    float along[2];
#pragma unroll
    for (int half = 0; half < 2; ++half)
      along[half] = -p.along[min(first + g + 8 * half, p.rows - 1)];
    wait_for_copies<STAGES - 2>();
    __syncthreads();
    load(tile + STAGES - 1);
#pragma unroll
    for (int k = 0; k < ROWS; k += 16) {
      uint32_t columns[4];
      load_transposed(columns, (h_tile + k * ROW_BYTES + lane_of_dots<COLUMNS>(lane)) ^ (warp * 32));
      add_product<T, HEADS>(x, columns, scaled + lane_of_rows<HEADS>(lane), k * HEADS * 2);
    }
    Rows<HEADS> d_logits;
    d_logits.from_tile(scaled + 16 * warp * HEADS * 2 + lane_of_rows<HEADS>(lane));
    float d_h[COLUMNS / 8][4] = {};
#pragma unroll
    for (int m = 0; m < HEADS / 16; ++m)
      if (16 * m < p.heads)
        add_product<T, COLUMNS>(d_h, d_logits.a[m], folded + lane_of_rows<COLUMNS>(lane),
                                16 * m * ROW_BYTES);
    __syncthreads();  // all have read h
    const uint32_t mine = h_tile + 16 * warp * ROW_BYTES;
    mix_tile<T, COLUMNS>(mine + lane_of_words<COLUMNS>(lane), d_h, {1.0f, 1.0f}, along);
    __syncwarp();
    store_rows<COLUMNS>(mine, d_hidden, p.width, first, p.rows, lane);
  }
  float* const partial =
      p.partial + static_cast<int64_t>(blockIdx.y) * p.heads * p.width + first_column + 16 * warp;
#pragma unroll
  for (int n = 0; n < HEADS / 8; ++n)
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const int head = 8 * n + 2 * t + (c & 1);
      if (head < p.heads) partial[static_cast<int64_t>(head) * p.width + g + 8 * (c >> 1)] = x[n][c];
    }
}

}  // namespace gradients

// ---------------------------------------------------------------------------------------------

constexpr int FINISH_LANES = 8;

// A block has 32 columns; FINISH_LANES threads share the heads of one.
template <typename T>
__global__ void __launch_bounds__(32 * FINISH_LANES) gate_finish(const GateLogits p) {
  __shared__ float sums[FINISH_LANES][32];
  const int lane = threadIdx.x % 32, part_of_heads = threadIdx.x / 32;
  const int column = blockIdx.x * 32 + lane;
  const float norm = Half<T>::to_float(static_cast<const T*>(p.norm)[column]);
  float d_norm = 0.0f;
  for (int head = part_of_heads; head < p.heads; head += FINISH_LANES) {
    const int64_t place = static_cast<int64_t>(head) * p.width + column;
    float x = 0.0f;
    for (int part = 0; part < p.parts; ++part)
      x += p.partial[static_cast<int64_t>(part) * p.heads * p.width + place];
    static_cast<T*>(p.d_weight)[place] = Half<T>::from_float(x * norm);
    d_norm += x * Half<T>::to_float(static_cast<const T*>(p.weight)[place]);
  }
  sums[part_of_heads][lane] = d_norm;
  __syncthreads();
  if (part_of_heads > 0) return;
#pragma unroll
  for (int i = 1; i < FINISH_LANES; ++i) d_norm += sums[i][lane];
  static_cast<T*>(p.d_norm)[column] = Half<T>::from_float(d_norm);
}

struct Forward {
  template <typename T, int HEADS>
  static cudaError_t launch(const GateLogits& p, cudaStream_t stream) {
    constexpr size_t bytes = logits::STAGES<HEADS> * logits::PARTS * logits::PART_BYTES<HEADS>;
    static_assert(bytes <= SHARED_BYTES_80, "the stages do not fit into shared memory");
    return start(logits::gate_forward<T, HEADS>, (p.rows + ROWS - 1) / ROWS, logits::THREADS, bytes,
                 stream, p);
  }
};

struct Backward {
  template <typename T, int HEADS>
  static cudaError_t launch(const GateLogits& p, cudaStream_t stream) {
    const int blocks = (p.rows + PREPARE_ROWS - 1) / PREPARE_ROWS;
    const cudaError_t prepared =
        start(gate_prepare<T, HEADS>, blocks, 32 * PREPARE_ROWS, 0, stream, p);
    if (prepared != cudaSuccess) return prepared;
    constexpr size_t bytes =
        HEADS * ROW_BYTES + gradients::STAGES * (TILE_BYTES + ROWS * HEADS * sizeof(T));
    static_assert(bytes <= SHARED_BYTES_80, "the stages do not fit into shared memory");
    const dim3 grid(p.width / COLUMNS, p.parts);
    const cudaError_t run = start(gradients::gate_backward<T, HEADS>, grid, gradients::THREADS,
                                  bytes, stream, p);
    if (run != cudaSuccess) return run;
    return start(gate_finish<T>, p.width / 32, 32 * FINISH_LANES, 0, stream, p);
  }
};

}  // namespace

cudaError_t gate_logits_forward(const GateLogits& args, cudaStream_t stream) {
  return dispatch<Forward>(args.is_bf16, gate_padded(args.heads), args, stream);
}

cudaError_t gate_logits_backward(const GateLogits& args, cudaStream_t stream) {
  return dispatch<Backward>(args.is_bf16, gate_padded(args.heads), args, stream);
}

}  // namespace loopcoder
