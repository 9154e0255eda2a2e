"""Copy the course's notebooks to a folder of the user's, and never overwrite what is there: `ftkit notebooks`."""

import argparse
import shutil
import sys
from pathlib import Path

from ftkit._arguments import parse

FOLDER = "ftkit-notebooks"  # in the working directory


def source_dir() -> Path:
    """The folder with the notebooks: inside an installed wheel, or `notebooks/` of a checkout."""
    package = Path(__file__).parent
    return package / "notebooks" if (package / "notebooks").is_dir() else package.parent / "notebooks"


def copy_notebooks(folder: Path) -> list[Path]:
    """Copy every notebook that `folder` lacks; returns the new files.

    Raises OSError where the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    new = []
    for notebook in sorted(source_dir().glob("*.ipynb")):
        if not (folder / notebook.name).exists():
            shutil.copyfile(notebook, folder / notebook.name)
            new.append(folder / notebook.name)
    return new


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="ftkit notebooks", description=__doc__)
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path(FOLDER), help="where they go (default: %(default)s)"
    )
    given = parse(parser, arguments)
    try:
        new = copy_notebooks(given.folder)
    except OSError as error:
        print(f"error: cannot copy to {given.folder}: {error.strerror}: give another folder", file=sys.stderr)
        return 2
    kept = len(list(given.folder.glob("*.ipynb"))) - len(new)
    print(f"{given.folder}: {len(new)} notebooks copied, {kept} that were there left as they are")
    return 0


if __name__ == "__main__":
    sys.exit(main())
