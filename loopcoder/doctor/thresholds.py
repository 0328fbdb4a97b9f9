"""What findings are held against, each number with its reason."""

from __future__ import annotations

TOTAL_S = 55.0
"""`loopcoder doctor` answers within a minute, whatever hangs."""
CHECK_S = 15.0
"""For one check of a machine: `nvidia-smi` takes some seconds where the driver is not kept loaded,
and a resolver asks three servers for 5 s each."""
OTHERS_COME_S = 20.0
"""For the other nodes, after their own checks: by hand a command is typed on one after the other;
what is left of the minute is for measuring."""

OPEN_FILES = 4096
"""A rank keeps a socket to every other one and the files of its corpora and of a save open; 1024,
which many systems give, is less than the sockets of a thousand ranks."""
OPEN_FILES_LEAST = 256
"""Importing torch and opening a corpus takes about a hundred."""
OPEN_FILES_ASKED = 65536
LOCKED_BYTES = 1 << 30
"""NCCL registers its buffers with InfiniBand and RoCE cards, which locks them in memory: some
hundred MiB per GPU."""
MEMORY_MAPS = 65530
"""The kernel's default: CUDA, the allocator and every file of a corpus take mappings."""
MEMORY_MAPS_ASKED = 262144
TASKS_PER_RANK = 256
"""Threads of a rank: torch, NCCL, the loader, and two writers of checkpoints."""
SHM_BYTES = 1 << 30
"""NCCL's ranks of a machine and Python's semaphores share memory there; Docker gives 64 MiB, with
which NCCL ends in `unhandled system error`."""
SHM_FREE_BYTES = 64 << 20
"""What ended processes have left behind fills it."""

DISK_PROBE_BYTES = 64 << 20
"""Written and read again: past the cache of a drive's controller, and done within the limit on a
slow network disk."""
DISK_BYTES_PER_S = 100e6
"""A checkpoint of 1B parameters has 16 GB: three minutes at this rate, in which a spinning disk is
as fast."""
SAVES_S = 60.0
"""A run whose checkpoints are all written in a minute does not need a fast disk."""
FREE_BYTES = 1 << 30
"""Logs, plots and a small checkpoint."""
FREE_INODES = 10_000
"""A checkpoint has some files per rank, a corpus some hundred."""

CLOCK_WARNING_S = 2.0
"""Nodes' logs are read side by side, and `make` compares times of files."""
CLOCK_ERROR_S = 300.0
"""Kerberos refuses a clock that is five minutes off, object stores one of fifteen."""
FIRST_YEAR, LAST_YEAR = 2025, 2100
"""This program is from after the first; a clock without a battery stands in 1970 or 2000."""

GPU_USED_BYTES = 1 << 30
"""The driver itself holds up to some hundred MiB of a GPU."""
GPU_HOT_C = 85
"""Data-centre GPUs lower their clocks from about 87 to 90 degrees Celsius on."""
MATRIX_SIDE = 8192
"""Of the square matrices whose product is timed: large enough to fill a GPU, some milliseconds."""
PEAK_SHARE = 0.5
"""Of the data sheet's FLOP/s; cuBLAS reaches 0.65 to 0.8 of it in bf16 on a GPU that is cool and
alone."""
FP8_ERROR = 0.1
"""Relative error of an FP8 product: E4M3 has three bits of mantissa, 2^-4 at most per factor."""

REDUCED_BYTES = {"nccl": 256 << 20, "gloo": 16 << 20}
"""Of the all-reduce that is timed: bandwidth, not latency, decides there; gloo takes a second for
the large one."""
LINK_SHARE = 0.4
"""Of the link's rate: NCCL's ring reaches 0.7 to 0.9 of NVLink for such sizes. Below this traffic
goes over PCIe, or part of the links is down."""
NETWORK_SHARE = 0.3
"""Of the network cards' rates together: without GPUDirect RDMA half is lost, and TCP reaches a
fraction."""
