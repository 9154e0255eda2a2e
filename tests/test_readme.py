"""What the pages say is true: their examples run, and every link, path, command, flag and make target exists."""

import functools
import importlib
import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import matplotlib.style
import pytest

from ftcourse.claims import VERDICTS, read_claims
from tests import ROOT

DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [
    *(ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "deploy" / "README.md", ROOT / "experiments" / "README.md"),
    *(ROOT / "notebooks" / "source" / "README.md", ROOT / "data" / "README.md", *DOCS),
]
README, CONTRIBUTING, LIBRARY = (ROOT / name for name in ("README.md", "CONTRIBUTING.md", "docs/library.md"))
README_BYTES = 10_240
LINES_OF_AN_EXAMPLE = 5  # imports included
LINES_OF_A_RECIPE = 10
CPU_INDEX = "https://download.pytorch.org/whl/cpu"  # the only address outside
NOT_STORED = {"data/results/gpu_lora.json"}  # the record of a run on a GPU, which nobody has made yet
OURS = r"(?:ftkit|ftcourse|experiments|release)"


def read(path):
    return path.read_text(encoding="utf-8")


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def commands(text):
    """Every line of a bash block, continuations joined and comments cut, and every piece of inline code."""
    shell = re.sub(r"\\\n", " ", "\n".join(blocks(text, "bash")))
    prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    lines = [re.sub(r"(^|\s)#.*", "", line).strip() for line in shell.splitlines()]
    return [line for line in lines if line] + re.findall(r"`([^`\n]+)`", prose)


def missing_targets(text):
    found = {target for line in commands(text) for target in re.findall(r"\bmake ([a-z]+)", line)}
    return found - set(re.findall(r"^([a-z]+):", read(ROOT / "Makefile"), re.M))


def anchors(text):
    """The anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def dead_links(text, folder=ROOT):
    """Links and pictures whose file, or whose heading in it, does not exist."""
    found = re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)", text)
    dead = []
    for link in found:
        name, _, anchor = link.partition("#")
        target = folder / name
        page = text if not name else read(target) if anchor and target.exists() else ""
        if (name and not target.exists()) or (anchor and anchor not in anchors(page)):
            dead.append(link)
    return dead


def missing_paths(text):
    """Paths into the checkout's folders, in commands and inline code, that do not exist."""
    folders = "|".join(path.name for path in ROOT.iterdir() if path.is_dir() and path.name[0] not in "._")
    pattern = rf"(?<![\w./$-])(?:{folders})/[\w./-]*\w"
    found = {path for line in commands(text) for path in re.findall(pattern, line) if "NN_" not in path}
    return {path for path in found - NOT_STORED if not path.startswith("runs/") and not (ROOT / path).exists()}


def programs(text):
    """(module, what follows it) for each command that starts one of ours, `ftkit NAME` as the module it runs."""
    found = []
    for line in commands(text):
        if started := re.search(rf"(?:^|\s)-m ({OURS}[\w.]*)(.*)", line):
            found.append(started.groups())
        elif started := re.match(r"ftkit (finetune|chat|memory)\b(.*)", line):
            found.append((f"ftkit.{started[1]}", started[2]))
    return found


def not_runnable(text):
    """Modules given to `python -m` that do not exist or do nothing when they are run."""
    wrong = set()
    for module, _ in programs(text):
        try:
            spec = importlib.util.find_spec(module)
            if spec and spec.submodule_search_locations:
                spec = importlib.util.find_spec(f"{module}.__main__")
        except ModuleNotFoundError:
            spec = None
        if spec is None or "main()" not in read(Path(spec.origin)):
            wrong.add(module)
    return wrong


@functools.cache
def help_of(module):
    command = [sys.executable, "-m", module, "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def unknown_flags(text):
    """(module, flag) for each flag that the program's --help does not list."""
    given = {(module, flag) for module, rest in programs(text) for flag in re.findall(r"\s(--[\w-]+)", rest)}
    given -= {(module, "--help") for module, _ in given}
    return {(module, flag) for module, flag in given if flag not in re.findall(r"--[\w-]+", help_of(module))}


def unknown_extras(text):
    known = tomllib.loads(read(ROOT / "pyproject.toml"))["project"]["optional-dependencies"]
    named = [
        name for line in commands(text) for found in re.findall(r"\.\[([\w,]+)\]", line) for name in found.split(",")
    ]
    return set(named) - set(known)


def wrong_pins(text):
    pinned = read(ROOT / "constraints.txt").split()
    return {pin for line in commands(text) for pin in re.findall(r"[\w-]+==[\w.]+", line) if pin not in pinned}


def outside_addresses(text):
    text = re.sub(r"<!-- badges:.*?<!-- end of badges -->", "", text, flags=re.S)  # which a release writes
    return set(re.findall(r"https?://[^\s)\"'`>]+", text)) - {CPU_INDEX}


def absent_from_tree(text):
    (tree,) = blocks(text, "text")
    return [name for name in re.findall(r"^\S+", tree, re.M) if not (ROOT / name).exists()]


def recipes(text):
    """Recipe -> its lines that are not empty."""
    section = re.search(r"^## Recipes\n(.*?)^## ", text, re.M | re.S)[1]
    heads = re.split(r"^### (.+)\n", section, flags=re.M)[1:]
    return {
        name: [line for line in body.splitlines() if line] for name, body in zip(heads[::2], heads[1::2], strict=True)
    }


def run_examples(text, folder):
    env = {name: value for name, value in os.environ.items() if not name.startswith("FTKIT_")}
    env |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", "\n".join(blocks(text, "python"))]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


def make(*arguments):
    """What make would do in a checkout without .venv, whatever a make that runs these tests was given."""
    env = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "TORCH")}
    command = ["make", "--dry-run", "VENV=no-such-folder", *arguments]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def picture():
    """docs/picture.py as a module."""
    spec = importlib.util.spec_from_file_location("picture", ROOT / "docs" / "picture.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_examples_run_one_after_the_other_in_a_fresh_process(tmp_path):
    done = run_examples(read(LIBRARY), tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "sharded" / "model" / "config.json").exists()


def test_the_example_of_a_claim_runs(tmp_path):
    done = run_examples(read(CONTRIBUTING), tmp_path)
    assert len(read_claims(done.stdout)) == 1, done.stderr


def test_examples_and_recipes_are_short():
    for block in blocks(read(LIBRARY), "python"):
        lines = [line for line in block.splitlines() if line]
        assert len(lines) <= LINES_OF_AN_EXAMPLE, block
    found = recipes(read(CONTRIBUTING))
    assert list(found) == [
        "An exercise",
        "A control",
        "A notebook",
        "An optimizer",
        "A chat check",
        "A sharding technique",
    ]
    assert all(len(lines) <= LINES_OF_A_RECIPE for lines in found.values())


def test_the_readme_is_short_and_leads_to_every_page():
    assert len(README.read_bytes()) <= README_BYTES
    links = re.findall(r"\]\(([^)#\s]+)", read(README))
    for page in {*PAGES, ROOT / "docs" / "memory.svg"} - {README, ROOT / "notebooks" / "source" / "README.md"}:
        assert page.relative_to(ROOT).as_posix() in links


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_everything_that_a_page_names_exists(page):
    text = read(page)
    assert dead_links(text, page.parent) == []
    assert missing_targets(text) == set()
    assert missing_paths(text) == set()
    assert not_runnable(text) == set()
    assert unknown_flags(text) == set()
    assert unknown_extras(text) == set()
    assert wrong_pins(text) == set()
    assert outside_addresses(text) == set()


def test_the_readme_and_the_programs_page_start_every_program():
    for page in (README, ROOT / "docs" / "programs.md"):
        assert {"ftkit.finetune", "ftkit.chat", "ftkit.memory"} <= {module for module, _ in programs(read(page))}


def test_subcommands_exist():
    known = importlib.import_module("ftcourse.cli").COMMANDS
    named = {name for page in PAGES for line in commands(read(page)) for name in re.findall(r"^ftkit ([a-z-]+)", line)}
    assert {"finetune", "chat", "memory", "compare-runs"} <= named <= set(known)


def test_experiments_lists_every_program_that_writes_a_record():
    listed = {module for module, _ in programs(read(ROOT / "experiments" / "README.md"))}
    for folder in ("experiments", "ftcourse/studies"):
        for path in (ROOT / folder).iterdir():
            main = path if path.suffix == ".py" else path / "__main__.py"
            if path.name[0] != "_" and main.exists() and "__main__" in read(main):
                assert f"{folder.replace('/', '.')}.{path.stem}" in listed


def test_tree_names_only_what_is_there_and_all_of_the_library():
    text = read(LIBRARY)
    assert absent_from_tree(text) == []
    (tree,) = blocks(text, "text")
    named = set(re.findall(r"^\S+", tree, re.M))
    parts = [path for path in (ROOT / "ftkit").iterdir() if not path.name.startswith("__")]
    assert {f"ftkit/{path.name}{'/' * path.is_dir()}" for path in parts} <= named
    assert {"ftcourse/exercises/", "ftcourse/studies/", "experiments/", "notebooks/", "docs/", "tests/"} <= named


def test_the_ledger_page_explains_every_verdict():
    assert set(re.findall(r"^- \*\*(.+?)\*\*:", read(ROOT / "docs" / "claims.md"), re.M)) == set(VERDICTS)


def test_the_picture_is_what_its_script_draws_from_the_record():
    drawn = picture()
    with matplotlib.style.context("default"):  # as in a new process, whatever the tests before this one have set
        assert drawn.svg() == drawn.svg() == read(drawn.PATH), "python docs/picture.py writes it"
    assert drawn.svg().count("<svg") == 1


def test_make_takes_the_cpu_build_of_torch_before_the_rest_and_only_when_asked():
    lines = make("lab", "TORCH=cpu").stdout.splitlines()
    (first, second) = [shlex.split(line) for line in lines if "pip install" in line]
    assert first[1:2] == ["install"] and first[-2:] == ["--index-url", CPU_INDEX]
    pin = subprocess.run(["sh", "-c", f"echo {first[2].replace('$$', '$')}"], cwd=ROOT, capture_output=True, text=True)
    assert pin.stdout.strip() in read(ROOT / "constraints.txt").split()
    assert second[1:4] == ["install", "-c", "constraints.txt"]
    assert "://" not in make("lab").stdout and make("lab").stdout.count("pip install") == 1
    refused = make("lab", "TORCH=gpu")
    assert refused.returncode and "TORCH=cpu" in refused.stderr


def test_each_check_fails_for_its_mutation(tmp_path):
    assert dead_links("[gone](nowhere.md) [there](README.md) [far](https://example.org)") == ["nowhere.md"]
    assert dead_links("# A b\n[x](#a-b) [y](#c) [z](README.md#licence) ![p](no.svg)") == ["#c", "no.svg"]
    assert missing_targets("`make hay` and `make lab`, make sense") == {"hay"}
    assert missing_targets("```bash\nmake hay  # x\n```\n") == {"hay"}
    assert missing_paths("`python tests/no.py` `data/chat/train.jsonl` `notebooks/NN_x.py`") == {"tests/no.py"}
    assert not_runnable("`python -m ftkit.nothing` `python -m ftkit.memory`") == {"ftkit.nothing"}
    assert not_runnable("`python -m ftkit.loss` `python -m ftkit.child_tuning`") == {"ftkit.loss", "ftkit.child_tuning"}
    finetune = "```bash\npython -m ftkit.finetune --output a \\\n    --speed 2  # --hay\n```\n"
    assert unknown_flags(finetune) == {("ftkit.finetune", "--speed")}
    assert unknown_flags("`ftkit memory x --hay 1 --mesh 1,1,1`") == {("ftkit.memory", "--hay")}
    assert unknown_extras("`pip install -e '.[lab,hay]'`") == {"hay"}
    assert wrong_pins("`pip install torch==1.0`") == {"torch==1.0"}
    assert outside_addresses(f"see https://example.org/a or {CPU_INDEX}") == {"https://example.org/a"}
    assert absent_from_tree("```text\nftkit/   a\nftkit/nothing.py   b\n```\n") == ["ftkit/nothing.py"]
    assert run_examples("```python\nx = 1\n```\n\n```python\nassert x == 2\n```\n", tmp_path).returncode == 1
