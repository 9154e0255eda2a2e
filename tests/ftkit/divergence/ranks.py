"""What the ranks of test_comparison record: `python -m tests.ftkit.divergence.ranks FOLDER MODULE.CLASS,MESH …`.

With a + before it, a run is recorded with rounding noise.
"""

import importlib
import sys
from pathlib import Path

from ftkit.distributed.launch import run_forked
from ftkit.distributed.mesh import DistributedContext, ParallelDims, build_context

if __name__ == "__main__":

    def main(context: DistributedContext) -> None:
        for case in sys.argv[2:]:
            name, _, mesh = case.lstrip("+").partition(",")
            where, _, loop = name.partition(".")
            made = getattr(importlib.import_module(f"tests.ftkit.divergence.{where}"), loop)
            dims = ParallelDims.parse(mesh, context.world_size)
            made(build_context(dims, context.device_info)).run(Path(sys.argv[1]) / loop, rounding=case[0] == "+")

    run_forked(main, 2)
