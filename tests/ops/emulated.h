// What emulated.py puts under the kernels: CUDA's threads as coroutines of one thread, in an order
// drawn anew after every barrier, and the PTX that they use. A background copy arrives at once or
// at the wait for it, as chance has it.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <vector>

#define __global__
#define __device__
#define __host__

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct float2 {
  float x, y;
};
struct uint4 {
  uint32_t x, y, z, w;
};
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
using cudaError_t = int;
using cudaStream_t = void*;
constexpr cudaError_t cudaSuccess = 0, cudaErrorInvalidValue = 1;

struct __nv_bfloat16 {
  uint16_t bits;
};
struct __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
inline float __bfloat162float(__nv_bfloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float y;
  memcpy(&y, &bits, 4);
  return y;
}
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  if (x != x) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
  return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)};
}
inline float2 __bfloat1622float2(__nv_bfloat162 x) {
  return {__bfloat162float(x.x), __bfloat162float(x.y)};
}

namespace emulated {

enum class At { RUNNING, WARP, BLOCK, DONE };
constexpr int STACK = 1 << 17, SHARED = 227 * 1024, PROCESSORS = 5;
constexpr uint32_t SHARED_BEGIN = 4096;  // an address that is not 0

struct Copy {
  uint32_t target;
  const void* source;
  int bytes;
};

struct Thread {
  ucontext_t context;  // where it begins
  jmp_buf jump;        // where it goes on: swapcontext would ask the kernel each time
  bool has_begun;
  std::vector<char> stack = std::vector<char>(STACK);
  At at;
  std::vector<std::vector<Copy>> groups;
  std::vector<Copy> open;
  uint32_t words[8];  // for the other lanes
};

inline std::vector<Thread> threads;
inline jmp_buf scheduler;
inline int current;
inline dim3 block_index, grid_size;
inline std::mt19937 chance;
inline std::vector<unsigned char> shared_memory(SHARED + 1024);
inline std::function<void()> body;

inline unsigned char* dynamic() {
  const auto start = reinterpret_cast<uintptr_t>(shared_memory.data());
  return shared_memory.data() + (1024 - start % 1024) % 1024;
}
inline unsigned char* pointer(uint32_t address, int bytes) {
  if (address < SHARED_BEGIN || address + bytes > SHARED_BEGIN + SHARED || address % bytes) {
    fprintf(stderr, "shared address %u of %d bytes\n", address, bytes);
    abort();
  }
  return dynamic() + (address - SHARED_BEGIN);
}

inline Thread& self() { return threads[current]; }
inline void wait(At where) {
  self().at = where;
  if (!_setjmp(self().jump)) _longjmp(scheduler, 1);
}
inline void enter() {
  body();
  self().at = At::DONE;
  _longjmp(scheduler, 1);
}
// Let a thread run to where it waits next.
__attribute__((noinline)) inline void resume(int which) {
  current = which;
  Thread& thread = threads[which];
  if (_setjmp(scheduler)) return;
  if (thread.has_begun) _longjmp(thread.jump, 1);
  thread.has_begun = true;
  setcontext(&thread.context);
}

// Run a block's threads to their end.
inline void run_block(int count) {
  threads.resize(count);  // their stacks stay
  for (Thread& thread : threads) {
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.data();
    thread.context.uc_stack.ss_size = STACK;
    thread.context.uc_link = nullptr;
    thread.at = At::RUNNING, thread.has_begun = false, thread.groups.clear(), thread.open.clear();
    makecontext(&thread.context, enter, 0);
  }
  std::fill(shared_memory.begin(), shared_memory.end(), 0xff);  // NaN
  std::vector<int> order(count);
  for (int i = 0; i < count; ++i) order[i] = i;
  const auto release = [&](int begin, int end, At where) {
    bool all = true, any = false;
    for (int i = begin; i < end; ++i) {
      all &= threads[i].at == where || threads[i].at == At::DONE;
      any |= threads[i].at == where;
    }
    for (int i = begin; all && i < end; ++i)
      if (threads[i].at == where) threads[i].at = At::RUNNING;
    return all && any;
  };
  for (bool went = true; went;) {
    went = false;
    std::shuffle(order.begin(), order.end(), chance);
    for (int i : order)
      if (threads[i].at == At::RUNNING) {
        went = true;
        resume(i);
      }
    for (int i = 0; i < count; i += 32) went |= release(i, std::min(i + 32, count), At::WARP);
    went |= release(0, count, At::BLOCK);
  }
  for (const Thread& thread : threads)
    if (thread.at != At::DONE) fprintf(stderr, "threads wait for each other\n"), abort();
}

inline void arrive(const Copy& copy) {
  unsigned char* const target = pointer(copy.target, 16);
  memset(target, 0, 16), memcpy(target, copy.source, copy.bytes);
}

// What the lanes of this warp have put into `words`.
inline Thread& lane(int which) { return threads[current / 32 * 32 + which]; }
template <typename Use>
void with_warp(Use use) {
  wait(At::WARP);
  use();
  wait(At::WARP);
}

inline float value(uint32_t both, int which) {
  const uint32_t bits = which ? both & 0xffff0000u : both << 16;
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

inline void ldmatrix(uint32_t (&out)[4], uint32_t address, bool transposed) {
  const int mine = current % 32, g = mine / 4, t = mine % 4;
  self().words[0] = address;
  with_warp([&] {
    for (int m = 0; m < 4; ++m) {
      const auto number = [&](int row, int column) -> uint32_t {
        uint16_t x;
        memcpy(&x, pointer(lane(8 * m + row).words[0], 16) + 2 * column, 2);
        return x;
      };
      out[m] = transposed ? number(2 * t, g) | number(2 * t + 1, g) << 16
                          : number(g, 2 * t) | number(g, 2 * t + 1) << 16;
    }
  });
}

}  // namespace emulated

struct EmulatedIndex {
  operator dim3() const { return dim3(emulated::current); }
  const struct {
    operator unsigned() const { return emulated::current; }
  } x{};
};
inline const EmulatedIndex threadIdx;
#define blockIdx emulated::block_index
#define gridDim emulated::grid_size

using std::max;
inline int min(int x, int y) { return std::min(x, y); }
inline void __syncthreads() { emulated::wait(emulated::At::BLOCK); }
inline void __syncwarp() { emulated::wait(emulated::At::WARP); }
inline float __shfl_xor_sync(unsigned, float x, int distance) {
  float out;
  memcpy(emulated::self().words, &x, 4);
  emulated::with_warp([&] {
    memcpy(&out, emulated::lane((emulated::current % 32) ^ distance).words, 4);
  });
  return out;
}
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline void __trap() { abort(); }
inline size_t __cvta_generic_to_shared(const void* p) {
  return static_cast<const unsigned char*>(p) - emulated::dynamic() + emulated::SHARED_BEGIN;
}

// PTX, outputs first.
inline void ptx_mov_b32(uint32_t& out, uint32_t x) { out = x; }
inline void ptx_ex2_approx_ftz_f32(float& y, float x) { y = std::exp2(x); }
inline void ptx_ld_shared_v4_b32(uint32_t& a, uint32_t& b, uint32_t& c, uint32_t& d, uint32_t at) {
  const auto* words = reinterpret_cast<const uint32_t*>(emulated::pointer(at, 16));
  a = words[0], b = words[1], c = words[2], d = words[3];
}
inline void ptx_ld_shared_b32(uint32_t& x, uint32_t at) {
  memcpy(&x, emulated::pointer(at, 4), 4);
}
inline void ptx_st_shared_v4_b32(uint32_t at, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  const uint32_t words[] = {a, b, c, d};
  memcpy(emulated::pointer(at, 16), words, 16);
}
inline void ptx_st_shared_b32(uint32_t at, uint32_t x) { memcpy(emulated::pointer(at, 4), &x, 4); }
inline void ptx_st_global_v4_b32(void* p, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  const uint32_t words[] = {a, b, c, d};
  memcpy(p, words, 16);
}
inline void ptx_cp_async_cg_shared_global(uint32_t at, const void* from, int bytes) {
  const emulated::Copy copy{at, from, bytes};
  if (emulated::chance() % 2)
    emulated::arrive(copy);
  else
    emulated::self().open.push_back(copy);
}
inline void ptx_cp_async_cg_shared_global_L2_128B(uint32_t at, const void* from, int bytes) {
  ptx_cp_async_cg_shared_global(at, from, bytes);
}
inline void ptx_cp_async_commit_group() {
  emulated::Thread& me = emulated::self();
  me.groups.push_back(me.open), me.open.clear();
}
inline void ptx_cp_async_wait_group(int pending) {
  auto& groups = emulated::self().groups;
  while (static_cast<int>(groups.size()) > pending) {
    for (const emulated::Copy& copy : groups.front()) emulated::arrive(copy);
    groups.erase(groups.begin());
  }
}
inline void ptx_ldmatrix_sync_aligned_m8n8_x4_shared_b16(uint32_t& a, uint32_t& b, uint32_t& c,
                                                         uint32_t& d, uint32_t at) {
  uint32_t x[4];
  emulated::ldmatrix(x, at, false);
  a = x[0], b = x[1], c = x[2], d = x[3];
}
inline void ptx_ldmatrix_sync_aligned_m8n8_x4_trans_shared_b16(uint32_t& a, uint32_t& b,
                                                               uint32_t& c, uint32_t& d,
                                                               uint32_t at) {
  uint32_t x[4];
  emulated::ldmatrix(x, at, true);
  a = x[0], b = x[1], c = x[2], d = x[3];
}
inline void ptx_mma_bf16(float& c0, float& c1, float& c2, float& c3, uint32_t a0, uint32_t a1,
                         uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  using namespace emulated;
  const uint32_t words[] = {a0, a1, a2, a3, b0, b1};
  memcpy(self().words, words, sizeof words);
  const int g = current % 32 / 4, t = current % 4;
  float* const c[] = {&c0, &c1, &c2, &c3};
  with_warp([&] {
    for (int i = 0; i < 4; ++i)
      for (int k = 0; k < 16; ++k) {
        const int column = 2 * t + i % 2, quad = k % 8 / 2;
        const float a = value(lane(4 * g + quad).words[i / 2 + k / 8 * 2], k % 2);
        *c[i] += a * value(lane(4 * column + quad).words[4 + k / 8], k % 2);
      }
  });
}

namespace loopcoder {

constexpr size_t SHARED_BYTES_80 = 163 * 1024, SHARED_BYTES_90 = 227 * 1024;

struct Device {
  int processors = emulated::PROCESSORS, shared_bytes = emulated::SHARED;
  bool is_sm90 = true;
  cudaError_t ask() { return cudaSuccess; }
};

template <typename... Parameters, typename... Arguments>
cudaError_t start_early(void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared_bytes,
                        cudaStream_t, bool, Arguments... arguments) {
  if (shared_bytes > emulated::SHARED) return cudaErrorInvalidValue;
  emulated::body = [=] { kernel(arguments...); };
  emulated::grid_size = grid;
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        emulated::block_index = dim3(x, y, z);
        emulated::run_block(threads);
      }
  return cudaSuccess;
}

}  // namespace loopcoder
