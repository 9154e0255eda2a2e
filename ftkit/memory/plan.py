"""The plan of a training step: all settings that determine its memory, and published models to try it on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from ftkit.child_tuning.masks import validate_fraction
from ftkit.distributed.mesh import ParallelDims
from ftkit.models import CustomCodeError, load_config, resolve_model

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
METHODS = ("full", "frozen", "lora", "child-tuning")
OPTIMIZERS = ("adamw", "child-tuning")
CHILD_STATES = ("task-free", "dense", "compact")
KERNELS = ("loop", "foreach", "fused")
EIGHT_BITS = "8bit"  # moments as bitsandbytes and torchao keep them
BASE_DTYPES = ("", "nf4")
CHECKPOINT_POLICIES = ("all", "alternate", "save-matmuls")
FIELDS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
FIELDS += ("vocab_size",)
SIZES = {  # of published models
    "llama-2-7b": (4096, 11008, 32, 32, 32, 32_000),
    "llama-2-13b": (5120, 13824, 40, 40, 40, 32_000),
    "llama-2-70b": (8192, 28672, 80, 64, 8, 32_000),
    "llama-3-8b": (4096, 14336, 32, 32, 8, 128_256),
    "llama-3-70b": (8192, 28672, 80, 64, 8, 128_256),
    "llama-3-405b": (16384, 53248, 126, 128, 8, 128_256),
}


@dataclass(frozen=True)
class MemoryPlan:
    """The settings of a training step; the defaults are those of `python -m ftkit.finetune` in one CPU process.

    Raises ValueError, naming the field, for settings that do not go together.
    """

    method: str = "full"  # one of METHODS; "child-tuning" is "full" with that optimizer
    options: Mapping = field(default_factory=dict)  # for "lora": arguments of ftkit.adapters.attach
    base_dtype: str = ""  # for "lora": "nf4" for linear layers in 4 bits (QLoRA); "" for param_dtype
    freeze: str = ""  # for "frozen" and "child-tuning": regular expression of the parameter names to freeze
    optimizer: str = "adamw"  # one of OPTIMIZERS
    child_state: str = "task-free"  # for child-tuning: one of CHILD_STATES
    reserve_p: float = 0.3  # for child-tuning: fraction of the weights that train
    param_dtype: str = "float32"  # of parameters and gradients
    compute_dtype: str = "float32"  # of unsharded weights and activations
    moment_dtype: str = ""  # of AdamW's two moments, or "8bit"; "" for the optimizer's default
    master_copy: bool = False  # a float32 copy of the trained parameters, for a param_dtype of 16 bits
    mesh: ParallelDims = field(default_factory=ParallelDims)  # given as one or as a tuple (dp_replicate, dp_shard, tp)
    ddp: bool = False  # replicate by DistributedDataParallel, not by fully_shard as ftkit.finetune does
    reshard_after_forward: bool = True  # free a layer's unsharded weights after forward
    micro_batch_size: int = 8  # sequences in a forward pass of a rank
    max_length: int = 512  # tokens per sequence
    packing: bool = False  # full sequences of several conversations, told apart by positions, instead of padded ones
    accumulation: int = 1  # micro-batches per step
    activation_checkpointing: bool = False
    checkpoint_policy: str = "all"  # recompute all layers, every second, or all but the matrix products of each
    loss_chunk: int = 0  # tokens per chunk of chunked cross-entropy; 0 for no chunks
    kernel: str = "loop"  # of AdamW: torch takes "loop" on a CPU and "foreach" on CUDA

    def __post_init__(self):
        choices = {"method": METHODS, "optimizer": OPTIMIZERS, "child_state": CHILD_STATES, "kernel": KERNELS}
        choices |= {"param_dtype": DTYPES, "compute_dtype": DTYPES, "moment_dtype": ("", *DTYPES, EIGHT_BITS)}
        choices |= {"base_dtype": BASE_DTYPES, "checkpoint_policy": CHECKPOINT_POLICIES}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}: give one of {', '.join(filter(None, allowed))}")
        if not isinstance(self.mesh, ParallelDims) and len(self.mesh) == 3:
            object.__setattr__(self, "mesh", ParallelDims(*self.mesh))
        sizes = self.mesh.sizes if isinstance(self.mesh, ParallelDims) else ()
        if not sizes or any(not isinstance(size, int) or size < 1 for size in sizes):
            raise ValueError(
                f"mesh is {self.mesh}: give three whole numbers from 1, dp_replicate,dp_shard,tp, as in 1,8,1"
            )
        for name in ("micro_batch_size", "max_length", "accumulation"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: give 1 or more")
        if self.max_length < 2:
            raise ValueError("max_length is 1: a token is predicted from the one before it, so give 2 or more")
        if self.loss_chunk < 0:
            raise ValueError(f"loss_chunk is {self.loss_chunk}: give a number of tokens, or 0 for all at once")
        validate_fraction(self.reserve_p)
        if self.ddp and self.mesh.sizes[1:] != (1, 1):
            raise ValueError(f"ddp does not shard the model, and mesh {self.mesh} does: give a mesh such as 4,1,1")
        if self.method == "lora" and self.freeze:
            raise ValueError("method 'lora' freezes the whole base: leave `freeze`, and choose by target_modules")
        if self.method != "child-tuning" and (self.method == "frozen") != bool(self.freeze):
            raise ValueError("method 'frozen' and `freeze`, the pattern of what is frozen, come together")
        if self.method != "lora" and self.options:
            raise ValueError(f"options {dict(self.options)} are LoRA's, and the method is {self.method!r}")
        if self.child_tuning and self.master_copy:
            raise ValueError("child-tuning keeps no master copy: keep the weights in float32")
        if self.child_tuning and self.moment_dtype == EIGHT_BITS:
            raise ValueError("child-tuning keeps its moments in float32: give moment_dtype 8bit with AdamW")
        if self.base_dtype and self.method != "lora":
            raise ValueError(f"base_dtype {self.base_dtype!r} freezes the base: give method 'lora'")
        if self.base_dtype and self.sharded:
            raise ValueError("a base in 4 bits is estimated whole on each rank: give mesh 1,1,1, or ddp")
        if self.base_dtype and self.options.get("use_dora"):
            raise ValueError("DoRA on a base in 4 bits is not estimated: leave use_dora, or base_dtype")
        if self.checkpoint_policy != "all" and not self.activation_checkpointing:
            raise ValueError(f"checkpoint_policy {self.checkpoint_policy!r} needs activation_checkpointing")

    @property
    def world_size(self) -> int:
        return self.mesh.world_size

    @property
    def sharded(self) -> bool:
        """Whether `fully_shard` is applied: always with several ranks, also where dp_shard is 1."""
        return self.world_size > 1 and not self.ddp

    @property
    def child_tuning(self) -> bool:
        """Whether ChildTuningAdamW takes the step."""
        return "child-tuning" in (self.method, self.optimizer)


def published_meta_model(name: str = "") -> nn.Module:
    """A model on meta, without weights: a key of SIZES, a folder with a config.json, a hub name, or "" for pocket-base.

    Raises ValueError if there is no such model.
    """
    if name in SIZES:
        config = LlamaConfig(**dict(zip(FIELDS, SIZES[name], strict=True)), max_position_embeddings=131_072)
    elif not name:
        config = load_config(resolve_model())
    else:
        try:
            if name.startswith((".", "/", "~")) and not (Path(name) / "config.json").is_file():
                raise FileNotFoundError(f"{name} has no config.json")
            config = load_config(name)
        except CustomCodeError:
            raise
        except (OSError, ValueError) as error:
            raise ValueError(
                f"no model {name!r}: give a folder with a config.json, a name that transformers finds, "
                f"or one of {', '.join(SIZES)}"
            ) from error
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
