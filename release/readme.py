"""The wheel's description: README.md with absolute links, as hatchling asks for it while it builds the wheel.

PyPI shows it without the repository around it. The address comes from `[project.urls]`, so it stands in one place.
"""

import importlib.util
import sys
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface


class Readme(MetadataHookInterface):
    def update(self, metadata: dict) -> None:
        addresses = load("addresses", Path(self.root, "ftcourse", "addresses.py"))
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        published = addresses.read_project(Path(self.root))
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": addresses.absolute_links(text, "", published.file),
        }


def load(name: str, path: Path):
    """A module by its path: nothing of the project can be imported while its wheel is built."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module
