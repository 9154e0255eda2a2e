"""What the ranks of test_meshes run: several fine-tunes, each on a mesh of its own, in one launch.

`python -m tests.ftkit.finetune.mesh_ranks CASES.json RANKS`: a list of the flags of `ftkit finetune`. What the ranks
say to a run that they refuse is written into OUTPUT.refused.
"""

import json
import sys
from pathlib import Path

import torch.distributed as dist

from ftkit.distributed.launch import Refusal, run_forked
from ftkit.distributed.mesh import DistributedContext, build_context
from ftkit.distributed.preemption import PreemptionHandler
from ftkit.finetune.config import Config, validate
from ftkit.finetune.data import read_training_data
from ftkit.finetune.train import fine_tune

if __name__ == "__main__":

    def main(context: DistributedContext) -> None:
        for case in json.loads(Path(sys.argv[1]).read_text()):
            run = validate(Config(**case))
            data = read_training_data(run)
            try:
                fine_tune(run, data, build_context(run.dims, context.device_info), PreemptionHandler())
            except Refusal as error:
                said = [None] * context.world_size
                dist.all_gather_object(said, str(error))
                if context.is_main_process:
                    run.output.with_suffix(".refused").write_text(json.dumps(said))
            context.barrier()

    run_forked(main, int(sys.argv[2]))
