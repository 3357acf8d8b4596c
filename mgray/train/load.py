"""How busy rank 0's node and GPU are, read in microseconds: /proc/stat and the driver's own library, no package needed."""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path

import torch

STAT = Path("/proc/stat")
NVML = "libnvidia-ml.so.1"


class _Utilisation(ctypes.Structure):
    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


class LoadSampler:
    """Shares of the node's CPU time since the last sample and of the GPU's recent time, each 0 to 1; None where it cannot be known."""

    def __init__(self, device: torch.device) -> None:
        self._cpu = _cpu_times()
        self._nvml, self._gpu = _open_gpu(device)
        self._device = device

    def sample(self) -> dict[str, float | None]:
        """`cpu` of all the node's cores, `gpu` and `gpu_gib` (reserved by torch) of this process's GPU."""
        cpu = gpu = gpu_gib = None
        before, self._cpu = self._cpu, _cpu_times()
        if before is not None and self._cpu is not None and self._cpu[1] > before[1]:
            cpu = (self._cpu[0] - before[0]) / (self._cpu[1] - before[1])
        if self._nvml is not None:
            found = _Utilisation()
            if self._nvml.nvmlDeviceGetUtilizationRates(self._gpu, ctypes.byref(found)) == 0:
                gpu = found.gpu / 100
        if self._device.type == "cuda":
            gpu_gib = torch.cuda.memory_reserved(self._device) / 2**30
        return {"cpu": cpu, "gpu": gpu, "gpu_gib": gpu_gib}


def _cpu_times() -> tuple[int, int] | None:
    """Busy and all time of the node's cores so far, in clock ticks; None where there is no /proc."""
    try:
        user, nice, system, idle, wait, irq, soft, steal = map(
            int, STAT.read_text().partition("\n")[0].split()[1:9]
        )  # guests are in user
    except (OSError, ValueError):
        return None
    busy = user + nice + system + irq + soft + steal
    return busy, busy + idle + wait


def _open_gpu(device: torch.device) -> tuple[ctypes.CDLL | None, ctypes.c_void_p]:
    """NVML and its handle of this GPU, found by its UUID: CUDA_VISIBLE_DEVICES does not number NVML's."""
    handle = ctypes.c_void_p()
    if device.type != "cuda":
        return None, handle
    with contextlib.suppress(OSError, AttributeError, RuntimeError):
        nvml = ctypes.CDLL(NVML)
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode()
        if nvml.nvmlInit_v2() == 0 and nvml.nvmlDeviceGetHandleByUUID(uuid, ctypes.byref(handle)) == 0:
            return nvml, handle
    return None, handle
