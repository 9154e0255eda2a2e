"""The architecture, read from the imports: who may import whom, and how large the library may grow."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("ftkit", "ftcourse", "experiments")
FLOORS = [  # a file or folder of ftkit imports only what stands in a line above its own
    {"_arguments", "_compat", "_modules", "findings", "freezing", "loss", "models", "parameters"},
    {"conversations", "distributed", "dtensor"},
    {"batching", "chat", "child_tuning", "divergence", "overfit"},
    {"adapters", "evaluate", "loading"},
    {"memory"},
    {"finetune"},
]
BELOW_ALL = {"_compat", "_modules"}  # the only ones that others of the first line may import
NOT_IN_FTKIT = {"IPython", "ipyparallel", "ipywidgets", "matplotlib", "ftcourse", "experiments"}


def imports_of(path: Path, root: Path = ROOT) -> list[str]:
    """Dotted names of all that a file imports, at the top or in a function, relative ones made absolute."""
    package = path.relative_to(root).parent.parts
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = [*base, *([node.module] if node.module else [])]
            found += [".".join([*module, alias.name]) for alias in node.names]
    return found


def graph_of(package: str, root: Path = ROOT) -> dict[str, set[str]]:
    """Which files and folders of a package each of them imports. `__init__.py` of the package itself is left out:
    it only names what it would load."""
    graph = defaultdict(set)
    for path in (root / package).rglob("*.py"):
        own = path.relative_to(root / package).parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        for name in imports_of(path, root):
            parts = name.split(".")
            if parts[0] == package and len(parts) > 1 and parts[1] != own:
                graph[own].add(parts[1])
        graph[own]  # one that imports nothing of the package is a node, too
    return dict(graph)


def layers_of(graph: dict[str, set[str]]) -> int:
    """The longest chain of imports. Raises AssertionError for a cycle."""
    depth: dict[str, int] = {}

    def visit(node: str, above: tuple[str, ...]) -> int:
        assert node not in above, f"a cycle: {' > '.join([*above, node])}"
        if node not in depth:
            depth[node] = 1 + max((visit(other, (*above, node)) for other in graph.get(node, ())), default=0)
        return depth[node]

    return max(visit(node, ()) for node in graph)


def upward(graph: dict[str, set[str]]) -> list[str]:
    """Imports that the floors do not allow."""
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    return [
        f"{own} imports {other}"
        for own, others in graph.items()
        for other in others
        if floor[other] >= floor[own] and not (other in BELOW_ALL and own not in BELOW_ALL)
    ]


def test_every_part_of_the_library_imports_only_what_stands_below_it():
    graph = graph_of("ftkit")
    assert set(graph) == set().union(*FLOORS)
    assert not upward(graph)
    assert layers_of(graph) <= len(FLOORS) and len(graph) <= 21


def test_the_library_knows_neither_course_nor_experiments_nor_notebooks():
    for path in (ROOT / "ftkit").rglob("*.py"):
        assert not NOT_IN_FTKIT & {name.split(".")[0] for name in imports_of(path)}, path


def test_the_course_does_not_know_the_experiments():
    for path in (ROOT / "ftcourse").rglob("*.py"):
        assert "experiments" not in {name.split(".")[0] for name in imports_of(path)}, path
    graph = graph_of("ftcourse")
    layers_of(graph)  # no cycle
    assert "exercises" not in graph["explorers"] and "explorers" not in graph["exercises"]
    assert not {"explorers", "exercises"} & graph["studies"]


def test_no_notebook_imports_an_experiment():
    for path in (ROOT / "notebooks" / "source").glob("*.py"):
        assert not any(name.startswith("experiments") for name in imports_of(path)), path


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_are_relative_inside_a_folder_and_absolute_between_folders(package):
    for path in (ROOT / package).rglob("*.py"):
        here = ".".join(path.relative_to(ROOT).parent.parts)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.level <= 1, f"{path}:{node.lineno} climbs out of its folder"
                own = not node.level and (node.module == here or node.module.rpartition(".")[0] == here)
                assert not own, f"{path}:{node.lineno} names its own folder"


def test_the_library_stays_small():
    files = list((ROOT / "ftkit").rglob("*.py"))
    lines = {path: len(path.read_text().splitlines()) for path in files}
    assert len(files) <= 91
    assert sum(lines.values()) <= 12203
    assert not {str(path): n for path, n in lines.items() if n > 400}


def test_a_wrong_import_is_seen(tmp_path):
    for name, text in {
        "loss.py": "from .overfit import x",
        "overfit.py": "def f():\n    from ftkit.loss import y",
        "memory/plan.py": "from ftkit import finetune",
        "finetune/train.py": "from ftkit.memory import z",
        "memory/step.py": "import ftkit._compat",
        "_compat.py": "",
    }.items():
        (tmp_path / "ftkit" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "ftkit" / name).write_text(text)
    graph = graph_of("ftkit", tmp_path)
    assert sorted(upward(graph)) == ["loss imports overfit", "memory imports finetune"]
    with pytest.raises(AssertionError, match="a cycle"):
        layers_of(graph)
