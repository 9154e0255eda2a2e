"""What the ranks of test_finetune_meshes run: several fine-tunes, each on a mesh of its own, in one launch.

`python mesh_ranks.py CASES.json RANKS`, a list of the flags of `python -m ftkit.finetune`.
"""

import json
import sys
from pathlib import Path

from ftkit.distributed import mesh
from ftkit.distributed.launch import run_forked
from ftkit.distributed.preemption import PreemptionHandler
from ftkit.finetune.config import Config, validate
from ftkit.finetune.data import read_training_data
from ftkit.finetune.train import train

if __name__ == "__main__":

    def main(context: mesh.DistributedContext) -> None:
        for case in json.loads(Path(sys.argv[1]).read_text()):
            config = Config(**case)
            validate(config)
            inputs = read_training_data(config)
            context.barrier()
            if context.is_main_process:
                Path(config.output).mkdir()
            context.barrier()
            shape = mesh.ParallelDims.parse(config.mesh, context.world_size)
            train(config, inputs, mesh.build_context(shape, context.device_info), PreemptionHandler())

    run_forked(main, int(sys.argv[2]))
