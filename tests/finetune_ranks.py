"""What the ranks of test_finetune_meshes run: several fine-tunes, each on a mesh of its own, in one launch.

`python finetune_ranks.py CASES.json RANKS`, a list of the flags of `python -m ftkit.finetune`.
"""

import json
import sys
from pathlib import Path

from ftkit.distributed import mesh
from ftkit.distributed.forked import run_forked
from ftkit.distributed.preemption import Preemption
from ftkit.finetune import train
from ftkit.run_config import Config, check
from ftkit.run_inputs import read_inputs

if __name__ == "__main__":

    def main(ranks: mesh.Ranks) -> None:
        for case in json.loads(Path(sys.argv[1]).read_text()):
            config = Config(**case)
            check(config)
            inputs = read_inputs(config)
            ranks.barrier()
            if ranks.is_first:
                Path(config.output).mkdir()
            ranks.barrier()
            shape = mesh.mesh_shape(config.mesh, ranks.world_size)
            train(config, inputs, mesh.arrange(shape, ranks.compute), Preemption())

    run_forked(main, int(sys.argv[2]))
