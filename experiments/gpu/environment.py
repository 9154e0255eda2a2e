"""Where, when and with which versions a run was made."""

import datetime
import os
import platform
from importlib import metadata

import torch

from .records import Write

PACKAGES = ("torch", "triton", "transformers", "trl", "peft", "accelerate", "datasets", "liger-kernel", "numpy")


def measure(device: torch.device, tiny: bool, write: Write) -> None:
    found = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "tiny": tiny,
        "device": "CPU",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "device": properties.name,
            "memory_bytes": properties.total_memory,
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "other_programs_bytes": _used_by_others(device),
        }
    write(found)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _used_by_others(device: torch.device) -> int:
    """Bytes of the device in use before this run takes any: more than a CUDA context's, and the device is shared."""
    free, total = torch.cuda.mem_get_info(device)
    return total - free
