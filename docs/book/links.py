"""Where the links and pictures of a page lead in the book. Nothing that a page shows comes from outside."""

import html
import re
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

from ftcourse.rendering import relinked

from .pictures import Pictures

ROOT = Path(__file__).resolve().parents[2]
IMAGE = re.compile(r"""<img\b(?:[^>"']|"[^"]*"|'[^']*')*>""")
COLAB = "colab.research.google.com"


def repository() -> str | None:
    """The address below which the repository's files can be read; None as long as none is published."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    address = project.get("urls", {}).get("Repository", "").removesuffix(".git")
    host = urlsplit(address).hostname or ""
    return f"{address}/blob/v{project['version']}" if host and not host.endswith(".invalid") else None


class Links:
    """Rewrites the links and pictures of pages.

    Args:
        pages: source file (absolute) -> its page, for each page of the book.
        pictures: takes the local files that pages show.
        repository: as `repository` gives it.
    """

    def __init__(self, pages: dict[Path, str], pictures: Pictures, repository: str | None):
        self.pages, self.pictures, self.repository = pages, pictures, repository
        self.notebooks = {path.name: page for path, page in pages.items() if path.suffix == ".ipynb"}

    def target(self, href: str, folder: Path, text: str = "") -> str | None:
        """Where a link of a source in `folder` leads; None for a file that is neither in the book nor published."""
        address = urlsplit(href)
        name, anchor = address.path.rpartition("/")[2], f"#{address.fragment}" if address.fragment else ""
        if name in self.notebooks and not (address.hostname == COLAB and ("<img" in text or "Colab" in text)):
            return self.notebooks[name] + anchor
        if address.scheme or not address.path:
            return href
        path = (folder / address.path).resolve()
        if path in self.pages:
            return self.pages[path] + anchor
        if self.repository and path.is_relative_to(ROOT) and path.exists():
            return f"{self.repository}/{path.relative_to(ROOT).as_posix()}{anchor}"
        return None

    def rewrite(self, page: str, folder: Path) -> str:
        """A page's HTML with its links and pictures as the book has them; `folder` is its source's."""
        page = relinked(page, lambda href, text: self.target(href, folder, text))
        return IMAGE.sub(lambda found: self.image(found[0], folder), page)

    def image(self, tag: str, folder: Path) -> str:
        """An `<img>` of a source: stored in the book if it is a file here, else its alternative text."""
        source, text = (re.search(rf"""\b{name}=(["'])(.*?)\1""", tag, re.S) for name in ("src", "alt"))
        alt = html.unescape(text[2]) if text else ""
        address = html.unescape(source[2]) if source else ""
        if address.startswith("data:") or (self.pictures.folder / address).is_file():
            return tag
        path = folder / address
        if urlsplit(address).scheme or not path.is_file():
            return html.escape(alt)
        if path.suffix == ".svg":
            drawn = self.pictures.add(path.read_text(encoding="utf-8"), alt)
            return f'<span class="picture">{drawn.img(alt=alt or drawn.alt)}</span>'
        return f'<img src="{self.pictures.write(path.read_bytes(), path.suffix)}" alt="{html.escape(alt)}">'
