"""Checks by NVIDIA's driver that the requested GPUs exist and can run MXNet.

MXNet itself would end with a long traceback, or only at the first kernel. Imports no MXNet.
"""

from __future__ import annotations

import ctypes
import os
import re
from typing import Any

from embedding_learning.errors import UsageError

# The wheel has machine code for compute capability 5.0, 6.0, 7.0, 8.0 and 8.6 and no PTX. Code
# for x.y runs on x.z with z >= y and on no other x: NVIDIA, CUDA C++ Programming Guide, "Binary
# Compatibility". So all of these run it, and nothing older or newer does.
_MAJORS_WITH_CODE = range(5, 9)

# The libraries of requirements-gpu.txt are those of CUDA 11.8. They run with every driver of CUDA
# 11.0 or later, from version 450.80.02: NVIDIA, CUDA Compatibility, "Minor Version
# Compatibility"; cuDNN 8.9.6's support matrix says the same.
_MIN_CUDA, _MIN_DRIVER = 11000, "450.80.02"
# PTX is an exception: an older driver refuses it. At run time MXNet compiles chains of pointwise
# operations to PTX with the NVRTC of 11.8.
_CUDA_OF_NVRTC = 11080

# From cuda.h.
_NO_DEVICE = 100
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76

_ON_THE_CPU = "leave --gpus out to train on the CPU"

# Messages of MXNet 1.9.1: the errors of cudaMalloc, of cuBLAS, cuDNN and cuSOLVER, and its own if
# no algorithm of a convolution fits into the memory.
_OUT_OF_MEMORY = re.compile(
    r"(CUDA|cuda)\w*\b.*out of memory|(CUBLAS|CUDNN|CUSOLVER)_STATUS_ALLOC_FAILED"
    r"|consider reducing (the )?batch/model size"
)


def check(numbers: list[int]) -> None:
    """Raises UsageError unless each of these GPUs exists and MXNet has code for it.

    If the driver is older than the compiler among the CUDA libraries, disables MXNet's compilation
    at run time.
    """
    flag = f"--gpus {','.join(map(str, numbers))}"
    driver = _open_driver(flag)
    version = ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(version))
    if version.value < _MIN_CUDA:
        raise UsageError(
            f"{flag}: NVIDIA's driver is for CUDA {_format_version(version.value)}, and MXNet "
            f"needs {_format_version(_MIN_CUDA)}; install version {_MIN_DRIVER} or later, or "
            f"{_ON_THE_CPU}"
        )
    count = _count_gpus(driver, flag)
    if max(numbers) >= count:
        existing = f"{count} GPU{'s' * (count > 1)}, numbered from 0" if count else "no GPU"
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        shown = "" if visible is None else f" (CUDA_VISIBLE_DEVICES={visible})"
        remedy = f"name others, or {_ON_THE_CPU}" if count else _ON_THE_CPU
        raise UsageError(f"{flag}: this machine has {existing}{shown}; {remedy}")
    for number in numbers:
        _check_capability(driver, flag, number)
    if version.value < _CUDA_OF_NVRTC:
        os.environ.setdefault("MXNET_USE_FUSION", "0")


def read_total_memory(number: int) -> int:
    """Returns the memory of a GPU in bytes, used or not. Call `check` first."""
    driver = _open_driver(f"--gpus {number}")
    driver.cuInit(0)
    memory = ctypes.c_size_t()
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), _find_device(driver, number))
    return memory.value


def is_out_of_memory(error: Exception) -> bool:
    """Returns whether an exception of MXNet says that a GPU has no memory left."""
    return bool(_OUT_OF_MEMORY.search(str(error)))


def _open_driver(flag: str) -> ctypes.CDLL:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise UsageError(
            f"{flag}: NVIDIA's driver (libcuda.so.1) is missing; install version {_MIN_DRIVER} "
            f"or later, or {_ON_THE_CPU}"
        ) from None


def _count_gpus(driver: ctypes.CDLL, flag: str) -> int:
    """Returns the number of GPUs that the driver shows. CUDA_VISIBLE_DEVICES can hide some."""
    status = driver.cuInit(0)
    if status == _NO_DEVICE:
        return 0
    if status:
        text = ctypes.c_char_p()
        driver.cuGetErrorString(status, ctypes.byref(text))
        reason = (text.value or b"no reason given").decode()
        raise UsageError(
            f"{flag}: NVIDIA's driver does not start (error {status}: {reason}); see what "
            f"nvidia-smi says, or {_ON_THE_CPU}"
        )
    count = ctypes.c_int()
    driver.cuDeviceGetCount(ctypes.byref(count))
    return count.value


def _check_capability(driver: ctypes.CDLL, flag: str, number: int) -> None:
    device = _find_device(driver, number)
    major, minor = (
        _read_attribute(driver, attribute, device)
        for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR)
    )
    if major in _MAJORS_WITH_CODE:
        return
    name = ctypes.create_string_buffer(256)
    driver.cuDeviceGetName(name, len(name), device)
    raise UsageError(
        f"{flag}: GPU {number}, {name.value.decode(errors='replace')}, has compute capability "
        f"{major}.{minor}, and MXNet 1.9.1 has code for 5.0 to 8.9 only; name another GPU, or "
        f"{_ON_THE_CPU}"
    )


def _find_device(driver: ctypes.CDLL, number: int) -> ctypes.c_int:
    device = ctypes.c_int()
    driver.cuDeviceGet(ctypes.byref(device), number)
    return device


def _read_attribute(driver: Any, attribute: int, device: ctypes.c_int) -> int:
    value = ctypes.c_int()
    driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
    return value.value


def _format_version(version: int) -> str:
    """Returns a version of CUDA as text: 11020 is 11.2."""
    return f"{version // 1000}.{version % 1000 // 10}"
