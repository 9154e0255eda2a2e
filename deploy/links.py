"""Print the links that open the course elsewhere: on Binder, on Kaggle, on a JupyterHub through nbgitpuller.

    python deploy/links.py
    python deploy/links.py --hub https://hub.example.org --notebook 05_chat_templates

The repository's address comes from `[project.urls]` in pyproject.toml, the one place that says it, and the tag from
`version` there.
"""

import argparse
import sys
import tomllib
from pathlib import Path
from urllib.parse import quote, urlparse

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"
FIRST = "00_start_here"


def read_source(pyproject: Path = PYPROJECT) -> tuple[str, str]:
    """(repository's address without `.git`, tag of this version).

    Raises ValueError as long as nothing is published: nobody can open an address under .invalid.
    """
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    repository = project["urls"]["Repository"].removesuffix("/").removesuffix(".git")
    if urlparse(repository).hostname.endswith(".invalid"):
        raise ValueError(f"nothing is published yet: put the repository's address under [project.urls] in {pyproject}")
    return repository, f"v{project['version']}"


def links(repository: str, tag: str, notebook: str = FIRST, hub: str = "", branch: str = "main") -> dict[str, str]:
    """Place -> link. Binder and Kaggle read public repositories on GitHub alone; a hub reads whatever git reads.

    nbgitpuller follows a branch, not the tag: it merges what is added later into the learner's copy.
    """
    path = f"notebooks/{notebook}.ipynb"
    address = urlparse(repository)
    found = {}
    if address.hostname == "github.com":
        found["Binder"] = f"https://mybinder.org/v2/gh{address.path}/{tag}?urlpath={quote('lab/tree/' + path, safe='')}"
        found["Kaggle"] = f"https://kaggle.com/kernels/welcome?src={repository}/blob/{tag}/{path}"
    if hub:
        opened = quote(f"lab/tree/{address.path.rpartition('/')[2]}/{path}?autodecode", safe="")
        pulled = f"repo={quote(repository, safe='')}&branch={quote(branch, safe='')}&urlpath={opened}"
        found["JupyterHub"] = f"{hub.rstrip('/')}/hub/user-redirect/git-pull?{pulled}"
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--notebook", default=FIRST, help="that opens (%(default)s)")
    parser.add_argument("--hub", default="", help="address of a JupyterHub whose image has nbgitpuller")
    parser.add_argument("--branch", default="main", help="that nbgitpuller follows (%(default)s)")
    given = parser.parse_args(arguments)
    try:
        repository, tag = read_source()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for place, link in links(repository, tag, given.notebook, given.hub, given.branch).items():
        print(f"{place}: {link}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
