// What the operators check of their tensors.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace loopcoder::checks {

using at::Tensor;

// The kernels run on one GPU: the current one, which the first tensor chose.
inline void check_device(const Tensor& x, const char* name, const Tensor& first) {
  TORCH_CHECK(x.is_cuda(), name, " is on ", x.device(), ": the kernels need a GPU");
  TORCH_CHECK(x.device() == first.device(), name, " is on ", x.device(), ", not on ",
              first.device(), " as the first tensor");
}

// The kernels read and write 16 bytes at a time.
inline bool is_aligned(const Tensor& x) {
  return reinterpret_cast<uintptr_t>(x.data_ptr()) % 16 == 0;
}

inline void check_half(const Tensor& x, const char* name, const Tensor& first) {
  check_device(x, name, first);
  const auto type = first.scalar_type();
  TORCH_CHECK(x.scalar_type() == type, name, " is ", x.scalar_type(), ", not ", type);
}

// Whether the type is bf16; anything but what is compiled is an error.
inline bool is_bf16(const Tensor& x, const char* name) {
  const auto type = x.scalar_type();
  TORCH_CHECK(type == at::kBFloat16 || type == at::kHalf, name, " is ", type,
              ", not bf16 or fp16");
  return type == at::kBFloat16;
}

inline int check_head_dim(int64_t head_dim) {
  TORCH_CHECK(head_dim == 64 || head_dim == 128, "head_dim is ", head_dim, ", not 64 or 128");
  return static_cast<int>(head_dim);
}

// A contiguous tensor of x's type, beside it, and of the shape that is wanted.
inline void check_like(const Tensor& y, const char* name, const Tensor& x, at::IntArrayRef shape) {
  check_half(y, name, x);
  TORCH_CHECK(y.is_contiguous() && y.sizes() == shape, name, " has the shape ", y.sizes(), ", not ",
              shape, ", or is not contiguous");
  TORCH_CHECK(is_aligned(y), name, " does not start at a multiple of 16 bytes");
}

}  // namespace loopcoder::checks
