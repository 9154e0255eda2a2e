"""The device, dtype and communication backend of a process."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class DeviceInfo:
    device: torch.device
    compute_dtype: torch.dtype  # of activations and unsharded weights; master weights stay float32
    backend: str  # of torch.distributed

    def __str__(self) -> str:
        return f"{self.device} in {str(self.compute_dtype).removeprefix('torch.')}"


def pick_device(local_rank: int = 0, world_size: int = 1) -> DeviceInfo:
    """CUDA if there is a GPU for this local rank, else Apple's MPS (in a single process: gloo lacks it), else the CPU.

    The dtype is bfloat16 if CUDA computes it natively (a T4 does not), else float32: float16 needs loss scaling, and
    on a CPU bfloat16 was no faster on small models. Raises RuntimeError for more local ranks than GPUs.
    """
    if torch.cuda.is_available():
        if local_rank >= torch.cuda.device_count():
            raise RuntimeError(
                f"local rank {local_rank} has no GPU: this host has {torch.cuda.device_count()}. "
                "Start torchrun with --nproc-per-node of at most that many"
            )
        native = torch.cuda.get_device_capability(local_rank) >= (8, 0)
        return DeviceInfo(torch.device("cuda", local_rank), torch.bfloat16 if native else torch.float32, "nccl")
    if world_size == 1 and torch.backends.mps.is_available():
        return DeviceInfo(torch.device("mps"), torch.float32, "gloo")
    return DeviceInfo(torch.device("cpu"), torch.float32, "gloo")
