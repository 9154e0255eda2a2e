"""What the device can do at most: bandwidth of a copy, and FLOP/s of a matrix product in bfloat16."""

import torch

from experiments.optimizer_speed.timing import copy_seconds, seconds

from .records import Write

WARM_UP = 3
SIZES = {  # by tiny: float32 numbers that are copied (8.6 GB moved), side of the matrices, rounds
    False: (2**30, 8192, 20),
    True: (2**20, 256, 5),
}


def measure(device: torch.device, tiny: bool, write: Write) -> None:
    elements, side, repeats = SIZES[tiny]
    write({"copy_bytes": 8 * elements, "copy_seconds": copy_seconds(elements, repeats, device)})
    torch.manual_seed(0)  # random numbers: on zeros a product draws less power and runs faster
    a, b = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    out = torch.empty_like(a)
    times = [seconds(lambda: torch.mm(a, b, out=out), device) for _ in range(-WARM_UP, repeats)][WARM_UP:]
    write({"matmul_flops": 2 * side**3, "matmul_seconds": times})
