"""What the ranks of test_divergence record: `python -m tests.ftkit.divergence.ranks FOLDER MODULE.CLASS,MESH …`."""

import importlib
import sys
from pathlib import Path

from ftkit.distributed.launch import run_forked
from ftkit.distributed.mesh import DistributedContext, ParallelDims, build_context

if __name__ == "__main__":

    def main(context: DistributedContext) -> None:
        for case in sys.argv[2:]:
            name, _, mesh = case.partition(",")
            where, _, loop = name.partition(".")
            made = getattr(importlib.import_module(f"tests.ftkit.divergence.{where}"), loop)
            dims = ParallelDims.parse(mesh, context.world_size)
            made(build_context(dims, context.device_info)).run(Path(sys.argv[1]) / loop)

    run_forked(main, 2)
