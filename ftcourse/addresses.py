"""Where the course is published: the addresses of its files and of its notebooks on Colab, made from two facts.

The facts are the repository's address and the version, which pyproject.toml states and an installed ftkit has in its
metadata. The build of the notebooks, the wheel's description and the release read them here. Imports nothing but the
standard library, because building the wheel loads this file by its path.
"""

import posixpath
import re
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

CODE = re.compile(r"(^```.*?^```|`[^`\n]+`)", re.M | re.S)
LINK = re.compile(r"(\]\(|\bhref=\")(?![a-z]+:|#|/)([^)\s\"#]+)")


@dataclass(frozen=True)
class Published:
    """A version of the course in a public repository."""

    repository: str  # https://github.com/OWNER/NAME.git
    version: str

    @property
    def is_public(self) -> bool:
        """Whether there is such a repository; nobody can register a name under .invalid (RFC 2606)."""
        return not (urlsplit(self.repository).hostname or ".invalid").endswith(".invalid")

    @property
    def on_github(self) -> bool:
        """Whether Colab can open the notebooks: of the public hosts, it knows GitHub."""
        return urlsplit(self.repository).hostname == "github.com"

    @property
    def tag(self) -> str:
        return f"v{self.version}"

    @property
    def colab_tag(self) -> str:
        """The tag under which the notebooks link to each other on Colab."""
        return f"{self.tag}-colab"

    @property
    def page(self) -> str:
        return self.repository.removesuffix("/").removesuffix(".git")

    def file(self, path: str) -> str:
        """The page of a file of the repository, or the file itself if it is a picture."""
        kind = "raw" if path.endswith((".svg", ".png")) else "blob"
        return f"{self.page}/{kind}/{self.tag}/{path}"

    def colab(self, name: str) -> str:
        """The address that opens a notebook on Colab. Raises ValueError where the repository is not on GitHub."""
        if not self.on_github:
            raise ValueError(f"Colab opens notebooks from github.com, and the repository is {self.repository}")
        path = f"{urlsplit(self.page).path}/blob/{self.colab_tag}/notebooks/{name}.ipynb"
        return f"https://colab.research.google.com/github{path}"

    def anywhere(self, path: str) -> str:
        """The address of a file of the repository for a reader on Colab: notebooks open there, too."""
        path = Path(path)
        return self.colab(path.stem) if path.suffix == ".ipynb" else self.file(path.as_posix())


def read_project(root: Path) -> Published:
    """What the pyproject.toml in `root` says."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return Published(project["urls"]["Repository"], project["version"])


def read_installed() -> Published | None:
    """What the metadata of the installed ftkit say; None where it is not installed."""
    try:
        found = metadata.metadata("ftkit")
    except metadata.PackageNotFoundError:
        return None
    urls = dict(line.split(", ", 1) for line in found.get_all("Project-URL", []))
    return Published(urls["Repository"], found["Version"]) if "Repository" in urls else None


def absolute_links(text: str, folder: str, address: Callable[[str], str]) -> str:
    """Markdown or HTML in which links to files of the repository are absolute; code is left as it is.

    folder: where the text lies, from the root of the repository. address: makes an address of a path from there.
    """

    def absolute(link: re.Match) -> str:
        return link[1] + address(posixpath.normpath(posixpath.join(folder, link[2])))

    parts = CODE.split(text)
    parts[::2] = [LINK.sub(absolute, part) for part in parts[::2]]
    return "".join(parts)


def notebook_address(name: str) -> str:
    """What a link from one notebook to another is: its file beside this one or, on Colab, which has one only, there."""
    published = read_installed() if "google.colab" in sys.modules else None
    return published.colab(name) if published and published.on_github else f"{name}.ipynb"
