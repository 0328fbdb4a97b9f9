// Launching a kernel for the types and sizes that are compiled.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

namespace loopcoder {

// Shared memory that a block can ask for on compute capability 8.0, and on 9.0.
constexpr size_t SHARED_BYTES_80 = 163 * 1024, SHARED_BYTES_90 = 227 * 1024;

// Let a kernel have more shared memory than the 48 KiB that every GPU gives, of which it declares at
// most 16 itself.
template <typename... Parameters>
cudaError_t allow_shared(void (*kernel)(Parameters...), size_t bytes) {
  if (bytes <= 32 * 1024) return cudaSuccess;
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                              cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
}

template <typename... Parameters, typename... Arguments>
cudaError_t start(void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared_bytes,
                  cudaStream_t stream, Arguments... arguments) {
  const cudaError_t refused = allow_shared(kernel, shared_bytes);
  if (refused != cudaSuccess) return refused;
  kernel<<<grid, threads, shared_bytes, stream>>>(arguments...);
  return cudaGetLastError();
}

// Start a kernel that calls `wait_for_inputs` (decode.cuh), and with is_early, which takes Hopper,
// while the one before it in the stream still runs.
template <typename... Parameters, typename... Arguments>
cudaError_t start_early(void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared_bytes,
                        cudaStream_t stream, bool is_early, Arguments... arguments) {
  cudaError_t refused = allow_shared(kernel, shared_bytes);
  // kernels that divide the memory of a multiprocessor in another way cannot run there together
  if (refused == cudaSuccess)
    refused = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                   cudaFuncAttributePreferredSharedMemoryCarveout,
                                   cudaSharedmemCarveoutMaxShared);
  if (refused != cudaSuccess) return refused;
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid, config.blockDim = dim3(threads), config.dynamicSmemBytes = shared_bytes;
  config.stream = stream, config.attrs = &early, config.numAttrs = is_early ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
}

// What a launch depends on of the current device.
struct Device {
  int processors, shared_bytes;  // shared memory that a block can ask for
  bool is_sm90;

  cudaError_t ask() {
    int device = 0, major = 0, minor = 0;
    cudaError_t failed = cudaGetDevice(&device);
    const auto read = [&](int& value, cudaDeviceAttr what) {
      if (failed == cudaSuccess) failed = cudaDeviceGetAttribute(&value, what, device);
    };
    read(processors, cudaDevAttrMultiProcessorCount);
    read(shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin);
    read(major, cudaDevAttrComputeCapabilityMajor);
    read(minor, cudaDevAttrComputeCapabilityMinor);
    is_sm90 = major == 9 && minor == 0;
    return failed;
  }
};

// Call Launcher::launch<T, SIZE> for the types and sizes that are compiled: the head dimension of
// the window, the padded number of heads of the gate.
template <typename Launcher, typename... Arguments>
cudaError_t dispatch(bool is_bf16, int size, const Arguments&... arguments) {
  if (size == 128)
    return is_bf16 ? Launcher::template launch<__nv_bfloat16, 128>(arguments...)
                   : Launcher::template launch<__half, 128>(arguments...);
  if (size == 64)
    return is_bf16 ? Launcher::template launch<__nv_bfloat16, 64>(arguments...)
                   : Launcher::template launch<__half, 64>(arguments...);
  return cudaErrorInvalidValue;
}

}  // namespace loopcoder
