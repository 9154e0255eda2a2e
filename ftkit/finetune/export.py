"""From trained weights to an ordinary Hugging Face folder, proved by opening it."""

import argparse
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import GENERATION_CONFIG_NAME, cached_file

from ftkit.adapters import merge_and_verify, save_adapter
from ftkit.batching import Example, pad
from ftkit.chat import end_of_turn_id
from ftkit.distributed.checkpoint import load_weights, model_signature
from ftkit.distributed.checkpoint_folder import check_same_run, check_undamaged
from ftkit.loading import check_loaded
from ftkit.models import load_causal_lm, load_config, load_tokenizer, meta_model, resolve_model

from .lora import attach_trained_adapters


def export_weights(
    state: Mapping[str, torch.Tensor], source: str, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> None:
    """Write the whole weights `state` of a model made from `source`, in the dtype that `source` has."""
    plain = meta_model(source)
    plain.load_state_dict(dict(state), assign=True)
    plain.tie_weights()
    plain.to(load_config(source).dtype or torch.float32)
    save_model(plain, source, tokenizer, folder)


def export_lora(
    trained: Mapping[str, torch.Tensor],
    lora: Mapping,
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[Example],
    adapter_folder: Path,
    folder: Path,
    quantised: bool = False,
) -> str:
    """Write the adapter as PEFT does, and the base with it merged in; returns what the merge was found to change.

    `lora` are the arguments of `attach_lora`; merged and unmerged logits are compared on `rows`. An adapter that
    trained on a `quantised` base is not merged. Raises MergeError where logits differ by more than rounding.
    """
    base = load_causal_lm(source, dtype="auto")
    attached = attach_trained_adapters(base, trained, **lora)
    atomic_directory(adapter_folder, lambda path: save_adapter(attached, path))
    if quantised:
        return (
            f"{adapter_folder} holds the adapter; it trained on the quantised base, so merging it into {source} is "
            f"left to you: ftkit merge {adapter_folder} {folder}, and evaluate what comes out"
        )
    merged, report = merge_and_verify(attached, pad(rows, tokenizer.pad_token_id or 0))
    save_model(merged, source, tokenizer, folder)
    return str(report)


def save_model(model: PreTrainedModel, source: str, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write model, tokenizer and the generation config of `source`, and open the folder, before it gets its name."""
    generation = cached_file(source, GENERATION_CONFIG_NAME, _raise_exceptions_for_missing_entries=False)

    def write(path: Path) -> None:
        if generation:
            model.generation_config = GenerationConfig()  # transformers does not save settings that it finds invalid
        model.save_pretrained(path)
        if generation:
            shutil.copyfile(generation, path / GENERATION_CONFIG_NAME)
        add_end_of_turn(path / GENERATION_CONFIG_NAME, tokenizer)
        tokenizer.save_pretrained(path)
        verify_round_trip(model, path)

    atomic_directory(folder, write)


def add_end_of_turn(path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let generation stop where the chat template ends a turn; a file that says so already is left as it is."""
    settings = json.loads(path.read_text()) if path.exists() else {}
    configured, end = settings.get("eos_token_id"), end_of_turn_id(tokenizer)
    stops = configured if isinstance(configured, list) else [i for i in (configured,) if i is not None]
    end = tokenizer.eos_token_id if end is None and not stops else end
    if end is not None and end not in stops:
        path.write_text(json.dumps(settings | {"eos_token_id": [*stops, end]}, indent=2) + "\n")


def verify_round_trip(model: nn.Module, folder: Path) -> None:
    """Open `folder` as anyone would; raise RuntimeError unless every weight came back equal to the bit."""
    opened, info = load_causal_lm(folder, dtype="auto", output_loading_info=True)
    check_loaded(opened, info)
    back = opened.state_dict()
    for name, tensor in model.state_dict().items():
        if name not in back or not torch.equal(tensor, back[name]):
            raise RuntimeError(f"{folder}: {name} does not come back as it was written: is the disk full?")


def atomic_directory(folder: Path, write) -> None:
    """Give a folder its name only when all of it is written, so that a crash leaves the one before it, or none."""
    temporary = folder.with_name(folder.name + ".incomplete")
    shutil.rmtree(temporary, ignore_errors=True)
    write(temporary)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def to_hugging_face(path: Path, base: str, folder: Path) -> Path:
    """Turn a sharded checkpoint into `folder`, which `from_pretrained` opens: in one process, without ranks.

    `base` is the model (a name or folder) that was trained: its configuration and tokenizer go along, and the
    weights get its dtype. Raises FileExistsError, or CheckpointError for another model's checkpoint.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} exists: give another folder")
    check_undamaged(path)
    model = meta_model(base)
    check_same_run(path, {"parameters": model_signature({}, model)["parameters"]})
    model.to_empty(device="cpu").tie_weights()
    load_weights(path, model)
    export_weights(model.state_dict(), base, load_tokenizer(base), folder)
    return folder


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m ftkit.finetune.export", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="folder of .distcp files, such as .../step-000040")
    parser.add_argument("output", type=Path, help="folder to write; must not exist yet")
    parser.add_argument("--base", default="", help="model that was trained, a name or folder (default: pocket-base)")
    options = parser.parse_args(arguments)
    try:
        to_hugging_face(options.checkpoint, resolve_model(options.base), options.output)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
