"""Sharded checkpoint to Hugging Face folder, in one process.

python -m ftkit.distributed.export runs/first/checkpoints/step-000040 runs/first/model --base MODEL
"""

import argparse
import sys
from pathlib import Path

from ftkit.distributed.checkpoint import identity, load_weights
from ftkit.distributed.checkpoint_folder import refuse_damaged, refuse_others
from ftkit.exporting import export_weights
from ftkit.pocket import empty_base, find_base, load_tokenizer


def to_hugging_face(path: Path, base: str, folder: Path) -> Path:
    """Turn a sharded checkpoint into `folder`, which `from_pretrained` opens: in one process, without ranks.

    `base` is the model (a name or folder) that was trained: its configuration and tokenizer go along, and the
    weights get its dtype. Raises FileExistsError, or CheckpointError for another model's checkpoint.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} exists: give another folder")
    refuse_damaged(path)
    model = empty_base(base)
    refuse_others(path, {"parameters": identity({}, model)["parameters"]})
    model.to_empty(device="cpu").tie_weights()
    load_weights(path, model)
    export_weights(model.state_dict(), base, load_tokenizer(base), folder)
    return folder


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m ftkit.distributed.export", description=__doc__.splitlines()[0]
    )
    parser.add_argument("checkpoint", type=Path, help="folder of .distcp files, such as .../step-000040")
    parser.add_argument("output", type=Path, help="folder to write; must not exist yet")
    parser.add_argument(
        "--base", default="", help="model that was trained, a name or folder (default: pocket-base)"
    )
    options = parser.parse_args(arguments)
    try:
        to_hugging_face(options.checkpoint, find_base(options.base), options.output)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
