// What the kernels of the gated window share: addresses, and who sees whom.
#pragma once

#include "gated_window.h"
#include "tile.cuh"

namespace loopcoder {

constexpr float LOG2_E = 1.4426950408889634f;

// The window in whole blocks of 16 keys.
constexpr int reach_of(int window) { return (window + 15) / 16 * 16; }

// Blocks of 16 keys that 16 queries hold in registers. Up to a window of 64 these are all, and
// kernels with ONE_PASS know their number.
constexpr int HELD = 5;
constexpr bool fits_one_pass(int window) { return window <= 16 * (HELD - 1); }

// The backward pass over queries and keys at once, for head_dim 128 and windows that fit one pass;
// compute capability 9.0 only.
cudaError_t gated_window_backward_sm90(const GatedWindow& p, int processors, cudaStream_t stream);

template <typename T>
__device__ T* head_of(const View& view, int batch, int head) {
  return static_cast<T*>(view.data) + batch * view.batch + head * view.head;
}

template <typename T>
__device__ float logit_of(const View& gate, int row, int batch, int head) {
  return Half<T>::to_float(head_of<T>(gate, batch, head)[row * gate.seq]);
}

// The two query rows of a lane, g and g+8 of its warp.
struct Queries {
  int row[2];
  int index[2];   // where to read: row, or the last row for those beyond the sequence
  int lowest[2];  // first key that the row sees

  __device__ Queries(const GatedWindow& p, int batch, int first) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      row[half] = first + 8 * half;
      index[half] = min(row[half], p.seq - 1);
      const int document =
          p.start ? static_cast<int>(p.start[static_cast<int64_t>(batch) * p.seq + index[half]]) : 0;
      lowest[half] = max(document, row[half] - p.window);
    }
  }
  // Whether a row sees the key that is `offset` behind `first_key`.
  __device__ bool sees(int half, int first_key, int offset) const {
    return offset >= lowest[half] - first_key && offset <= row[half] - first_key;
  }
};

}  // namespace loopcoder
