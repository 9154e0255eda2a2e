"""Sharded checkpoint to Hugging Face folder, in one process.

python -m ftkit.distributed.export runs/first/checkpoints/step-000040 runs/first/model --base MODEL
"""

import argparse
import sys
from pathlib import Path

from ftkit.distributed.checkpoint import to_hugging_face
from ftkit.pocket import find_base


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
