// The interface between the attention of decoding and its PyTorch operators.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace loopcoder {

constexpr int DECODE_MAX_SPLITS = 64;

// A cache [places, loops, kv_heads, tokens, head_dim] in bf16; strides in elements, tokens are
// neighbours. The cache of all tokens has one loop.
struct Kept {
  void *k, *v;
  int64_t place, loop, head;
  int tokens;  // that there is room for
};

// One token of each of some places, in all loops at once.
struct DecodeAttention {
  int batch, loops, heads, kv_heads, head_dim, splits;
  float scale;
  Kept all, ring;  // of all tokens; of the last ones, for each loop but the first
  const int64_t* places;  // [batch]
  const int64_t* positions;  // of the token: what is kept of it and before is seen [batch]

  // Rotation:
  const void* qkv;  // [batch, loops, kv_heads * (heads / kv_heads + 2) * head_dim]: by K/V head its
                    // query heads, its K, its V
  const float *cos, *sin;  // [batch, head_dim]
  // Attention:
  void* q;  // after RoPE; rotation writes it [batch, loops, heads, head_dim]
  const void* gate;  // logits [batch, loops - 1, heads], heads are neighbours
  int64_t gate_batch, gate_loop;
  float* sums;  // scratch: of each split, and of the ring
                // [batch, loops, heads, splits + 1, head_dim]
  float* stats;  // scratch: log2 of the largest weight, sum of the weights over it
                 // [batch, loops, heads, splits + 1, 2]
  void* out;  // [batch, loops, heads, head_dim]
};

// Return in how many parts blocks share `tokens` of a place: as many as keep the GPU busy. It
// depends on what there is room for, not on lengths, so that a CUDA graph can hold it.
cudaError_t decode_splits(const DecodeAttention& args, int* splits);
// Write q after RoPE, and keep k after RoPE and v: those of loop 0 with all tokens, those of later
// loops in their rings.
cudaError_t decode_rotate(const DecodeAttention& args, cudaStream_t stream);
// Write attention: loop 0 sees all tokens of its place; later loops mix that by their gate with
// what they see in their ring.
cudaError_t decode_attention(const DecodeAttention& args, cudaStream_t stream);

}  // namespace loopcoder
