// out = x W^T for at most 8 rows of x: what it takes is the time of reading W once.
//
// A block has 8 rows of W at a time, a tile, and its warps share their width: chunk c of 64 numbers
// is warp c % WARPS's. A lane copies 16 bytes at a time to a place of its own in shared memory and
// takes them from there itself, as many steps ahead as there are stages: no barrier is between W
// and the products, and reading goes on over the end of a tile. The first stages are asked for
// before the kernel waits for x.
//
// The products are mma.m16n8k16 with x as A, of which the upper 8 rows exist, and W as B. A lane's 8
// neighbouring numbers stand where four pairs belong that are not neighbours; since x and W are
// permuted alike, the sum is the same.
//
// x is kept in shared memory, and where it is too wide, a part of it after the other: a tile's sums
// then wait for the next part in shared memory.
#include "decode_gemv.h"

#include "decode.cuh"
#include "launch.cuh"
#include "tile.cuh"

namespace loopcoder {
namespace {

using T = __nv_bfloat16;

constexpr int WARPS = 8, THREADS = 32 * WARPS, TILE = 8, LOADS = 2, CHUNK = 32 * LOADS;
constexpr int STEP_BYTES = THREADS * 16;
template <int STAGES>
constexpr int RING_BYTES = STAGES * LOADS * STEP_BYTES;
// Of x. With the ring it leaves room for a block of the next kernel.
constexpr int PART_BYTES = 42 * 1024;

// What the host derives from the shapes.
struct Plan {
  int tiles, parts, part_width;  // a part has full turns of all warps, but for the last
  int x_bytes;                   // of a row of a part; 64 more than a multiple of 128
  int held_tiles;                // whose sums a block keeps between the parts

  explicit Plan(const DecodeGemv& p, int blocks) {
    tiles = (p.columns * (p.swiglu ? 2 : 1) + TILE - 1) / TILE;
    const int turn = CHUNK * WARPS, turns = (p.width + turn - 1) / turn;
    const int most = PART_BYTES / (p.rows * turn * static_cast<int>(sizeof(T)));
    parts = (turns + most - 1) / most;
    part_width = (turns + parts - 1) / parts * turn;
    parts = (p.width + part_width - 1) / part_width;
    x_bytes = part_width * static_cast<int>(sizeof(T)) + 64;
    held_tiles = parts > 1 ? (tiles + blocks - 1) / blocks : 0;
  }
  __host__ __device__ int end_of(int part, int width) const {  // of a part's numbers
    return width - part * part_width < part_width ? width - part * part_width : part_width;
  }
  size_t bytes_beside_ring(int rows) const {
    return rows * x_bytes + held_tiles * rows * TILE * sizeof(float);
  }
};

// The output that a place of a tile belongs to, and its row of W: with swiglu a tile has 4 of the
// gate, and then the same 4 of up.
__device__ int column_of(const DecodeGemv& p, int tile, int place) {
  return p.swiglu ? tile * (TILE / 2) + place % (TILE / 2) : tile * TILE + place;
}
__device__ int row_of(const DecodeGemv& p, int tile, int place) {
  return column_of(p, tile, place) + (p.swiglu && place >= TILE / 2 ? p.columns : 0);
}

// A lane's way through W: the chunks of a part of a tile, tiles, parts.
template <int STAGES>
struct Reader {
  const DecodeGemv& p;
  const Plan& plan;
  const uint32_t ring;  // the lane's own places
  const int place, warp, offset;  // of the tile; within a chunk
  int part = 0, tile = blockIdx.x, k, end, stage = 0;
  bool exists;
  const T* row;  // of W, from where the part begins

  __device__ Reader(const DecodeGemv& p, const Plan& plan, uint32_t ring, int warp, int lane)
      : p(p), plan(plan), ring(ring), place(lane / 4), warp(warp), offset(lane % 4 * 8) {
    begin();
  }
  __device__ void begin() {
    k = warp * CHUNK, end = plan.end_of(part, p.width);
    exists = column_of(p, tile, place) < p.columns;
    row = static_cast<const T*>(p.weight) + part * plan.part_width +
          static_cast<int64_t>(exists ? row_of(p, tile, place) : 0) * p.width;
  }
  // Ask for a chunk; for nothing, where there is none any more.
  __device__ void ask() {
    while (k >= end && part < plan.parts) {
      tile += gridDim.x;
      if (tile >= plan.tiles) tile = blockIdx.x, ++part;
      begin();
    }
    if (part < plan.parts) {
#pragma unroll
      for (int i = 0; i < LOADS; ++i) {
        const int column = k + 32 * i + offset;
        const bool inside = exists && column < end;
        stream_async(ring + (stage * LOADS + i) * STEP_BYTES, inside ? row + column : p.weight,
                     inside);
      }
      k += WARPS * CHUNK;
    }
    commit_copies();
    stage = (stage + 1) % STAGES;
  }
};

// Puts x into shared memory, part after part. With a norm it is multiplied by the norm's weight
// only: 1 / RMS of a row is a factor of its sums, and known when x has been read once.
struct Input {
  const DecodeGemv& p;
  const Plan& plan;
  const uint32_t target;
  const int of_row, row, first;  // warps of a row; this lane's row, and its first piece
  float square = 0.0f;

  __device__ Input(const DecodeGemv& p, const Plan& plan, uint32_t target, int warp, int lane)
      : p(p),
        plan(plan),
        target(target),
        of_row(WARPS / p.rows),
        row(warp / of_row),
        first(warp % of_row * 32 + lane) {}

  // Zeros follow up to the end of the last chunk.
  __device__ void put(int part) {
    if (row >= p.rows) return;
    const int begin = part * plan.part_width, pieces = plan.part_width / 8;
    const T* const x = static_cast<const T*>(p.x) + row * p.x_row + begin;
    const T* const norm = static_cast<const T*>(p.norm) + begin;
#pragma unroll 5
    for (int piece = first; piece < pieces; piece += of_row * 32) {
      uint32_t words[4] = {}, norms[4];
      if (begin + 8 * piece < p.width) {
        unpack_words(words, *reinterpret_cast<const uint4*>(x + 8 * piece));
        if (p.norm) {
          unpack_words(norms, *reinterpret_cast<const uint4*>(norm + 8 * piece));
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            const float2 both = Half<T>::unpack(words[j]), w = Half<T>::unpack(norms[j]);
            square += both.x * both.x + both.y * both.y;
            words[j] = Half<T>::pack(both.x * w.x, both.y * w.y);
          }
        }
      }
      write_shared(target + row * plan.x_bytes + 16 * piece,
                   make_uint4(words[0], words[1], words[2], words[3]));
    }
  }
};

// A tile's finished sum of one row and place; all lanes of a warp come here.
__device__ void put_out(const DecodeGemv& p, int tile, int row, int place, float sum) {
  if (p.swiglu) {
    const float up = __shfl_xor_sync(0xffffffff, sum, TILE / 2);
    sum = sum * sigmoid(sum) * up;
    if (place >= TILE / 2) return;
  }
  const int column = column_of(p, tile, place);
  if (row >= p.rows || column >= p.columns) return;
  if (p.added)
    sum += Half<T>::to_float(static_cast<const T*>(p.added)[row * p.added_row + column]);
  const int64_t at_out = static_cast<int64_t>(row) * p.columns + column;
  if (p.is_float)
    static_cast<float*>(p.out)[at_out] = sum;
  else
    static_cast<T*>(p.out)[at_out] = Half<T>::from_float(sum);
}

template <int STAGES>
__global__ void __launch_bounds__(THREADS, 2)
    decode_products(const DecodeGemv p, const Plan plan) {
  extern __shared__ __align__(1024) unsigned char memory[];
  __shared__ float sums[2][WARPS][GEMV_MAX_ROWS * TILE], squares[WARPS];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const uint32_t start = shared_start(memory), x = start + RING_BYTES<STAGES>;
  const uint32_t ring = start + threadIdx.x * 16;
  float* const held = reinterpret_cast<float*>(memory + RING_BYTES<STAGES> + p.rows * plan.x_bytes);

  Reader<STAGES> reader(p, plan, ring, warp, lane);
#pragma unroll
  for (int i = 0; i < STAGES - 1; ++i) reader.ask();
  wait_for_inputs();
  let_next_begin();

  Input input(p, plan, x, warp, lane);
  int stage = 0, buffer = 0;
  for (int part = 0; part < plan.parts; ++part) {
    input.put(part);
    const bool is_last = part == plan.parts - 1;
    if (is_last) {
      const float square = warp_sum(input.square);
      if (lane == 0) squares[warp] = square;
    }
    __syncthreads();
    const int end = plan.end_of(part, p.width);
    const uint32_t lane_x = x + g * plan.x_bytes + 16 * t;
    for (int tile = blockIdx.x, index = 0; tile < plan.tiles; tile += gridDim.x, ++index) {
      float c[LOADS][4] = {};
      for (int k = warp * CHUNK; k < end; k += WARPS * CHUNK) {
        wait_for_copies<STAGES - 2>();
        reader.ask();  // for the places of the step before
#pragma unroll
        for (int i = 0; i < LOADS; ++i) {
          uint32_t w[4], a[4] = {};
          unpack_words(w, read_shared(ring + (stage * LOADS + i) * STEP_BYTES));
          if (g < p.rows) unpack_words(a, read_shared(lane_x + (k + 32 * i) * 2));
          Half<T>::mma(c[i], {a[0], 0, a[1], 0}, w[0], w[1]);
          Half<T>::mma(c[i], {a[2], 0, a[3], 0}, w[2], w[3]);
        }
        stage = (stage + 1) % STAGES;
      }
#pragma unroll
      for (int j = 0; j < 2; ++j)
        sums[buffer][warp][g * TILE + 2 * t + j] = c[0][j] + c[1][j];
      __syncthreads();
      if (warp * 32 < p.rows * TILE) {
        const int place = threadIdx.x;  // of the tile: its row and its column
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < WARPS; ++i) sum += sums[buffer][i][place];
        float* const mine = held + index * p.rows * TILE + place;
        const bool is_held = plan.parts > 1 && place < p.rows * TILE;
        if (is_held && part > 0) sum += *mine;
        if (is_last && p.norm) {
          float square = 0.0f;
          for (int i = 0; i < input.of_row; ++i)
            square += squares[min(place / TILE, p.rows - 1) * input.of_row + i];
          sum *= rsqrtf(square / p.width + p.eps);
        }
        if (is_last)
          put_out(p, tile, place / TILE, place % TILE, sum);
        else if (is_held)
          *mine = sum;
      }
      buffer ^= 1;
    }
  }
}

}  // namespace

cudaError_t decode_gemv(const DecodeGemv& args, cudaStream_t stream) {
  constexpr int STAGES = 8;
  static_assert(2 * (RING_BYTES<STAGES> + PART_BYTES + 6 * 1024) <= SHARED_BYTES_90,
                "a block of the next kernel has no room beside one");
  Device device;
  const cudaError_t failed = device.ask();
  if (failed != cudaSuccess) return failed;
  const int tiles = Plan(args, 1).tiles;
  const int blocks = tiles < device.processors ? tiles : device.processors;
  const Plan plan(args, blocks);
  const size_t bytes = RING_BYTES<STAGES> + plan.bytes_beside_ring(args.rows);
  // beside more rows than that, which take more shared memory, beginning early is slower
  constexpr int EARLY_ROWS = 3;
  const bool is_early = device.is_sm90 && args.rows <= EARLY_ROWS;
  return start_early(decode_products<STAGES>, blocks, THREADS, bytes, stream, is_early, args, plan);
}

}  // namespace loopcoder
