"""From trained weights to an ordinary Hugging Face folder, proved by opening it."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ftkit.adapters import merge_and_verify, save_adapter
from ftkit.batches import Row, pad
from ftkit.distributed.lora import with_adapters
from ftkit.evaluate import stop_token_ids
from ftkit.loading import check_loaded
from ftkit.pocket import empty_base, load_causal_lm, load_config


def export_weights(
    state: Mapping[str, torch.Tensor], source: str, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> None:
    """Write the whole weights `state` of a model made from `source`, in the dtype that `source` has."""
    plain = empty_base(source)
    plain.load_state_dict(dict(state), assign=True)
    plain.tie_weights()
    plain.to(load_config(source).dtype or torch.float32)
    _write(plain, tokenizer, folder)


def export_lora(
    trained: Mapping[str, torch.Tensor],
    lora: Mapping,
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[Row],
    adapter_folder: Path,
    folder: Path,
) -> str:
    """Write the adapter as PEFT does, and the base with it merged in; returns what the merge was found to change.

    `lora` are the arguments of `attach_lora`; merged and unmerged logits are compared on `rows`. Raises MergeError
    where they differ by more than rounding.
    """
    base = load_causal_lm(source, dtype="auto")
    attached = with_adapters(base, trained, **lora)
    _when_whole(adapter_folder, lambda path: save_adapter(attached, path))
    merged, report = merge_and_verify(attached, pad(rows, tokenizer.pad_token_id or 0))
    _write(merged, tokenizer, folder)
    return str(report)


def _write(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    # Whoever loads the folder shall stop where the chat template ends a turn.
    model.generation_config.eos_token_id = stop_token_ids(model, tokenizer)

    def write(path: Path) -> None:
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)
        prove(model, path)

    _when_whole(folder, write)


def prove(model: nn.Module, folder: Path) -> None:
    """Open `folder` as anyone would; raise RuntimeError unless every weight came back equal to the bit."""
    opened, info = load_causal_lm(folder, dtype="auto", output_loading_info=True)
    check_loaded(opened, info)
    back = opened.state_dict()
    for name, tensor in model.state_dict().items():
        if name not in back or not torch.equal(tensor, back[name]):
            raise RuntimeError(f"{folder}: {name} does not come back as it was written: is the disk full?")


def _when_whole(folder: Path, write) -> None:
    """Give a folder its name only when all of it is written, so that a crash leaves the one before it, or none."""
    temporary = folder.with_name(folder.name + ".incomplete")
    shutil.rmtree(temporary, ignore_errors=True)
    write(temporary)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
