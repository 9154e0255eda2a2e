"""Links to other places, and the files by which they install the course."""

import importlib.util
import json
import re
import tomllib
from urllib.parse import parse_qs, unquote, urlparse

import pytest
import yaml
from packaging.requirements import Requirement

from tests import ROOT
from tests.test_readme import CPU_INDEX, dead_links, missing_paths, missing_targets, not_runnable, unknown_flags

spec = importlib.util.spec_from_file_location("links", ROOT / "deploy/links.py")
links = importlib.util.module_from_spec(spec)
spec.loader.exec_module(links)

GITHUB = "https://github.com/someone/ftkit"


def test_links_open_a_notebook_that_exists_at_the_tag_of_this_version():
    found = links.links(GITHUB, "v1.2.3", "05_chat_templates", "https://hub.example.org/")
    binder, kaggle, hub = (urlparse(found[place]) for place in ("Binder", "Kaggle", "JupyterHub"))
    path = "notebooks/05_chat_templates.ipynb"
    assert (ROOT / path).exists()
    assert binder.path == "/v2/gh/someone/ftkit/v1.2.3" and parse_qs(binder.query) == {"urlpath": [f"lab/tree/{path}"]}
    assert kaggle.query == f"src={GITHUB}/blob/v1.2.3/{path}"
    query = parse_qs(hub.query)
    assert hub.geturl().startswith("https://hub.example.org/hub/user-redirect/git-pull?")
    assert query["repo"] == [GITHUB] and query["branch"] == ["main"]
    assert query["urlpath"] == [f"lab/tree/ftkit/{path}?autodecode"]


def test_other_hosts_of_git_get_only_the_link_of_a_hub():
    assert set(links.links("https://git.example.org/ftkit", "v1", hub="https://hub.example.org")) == {"JupyterHub"}


def test_the_address_comes_from_the_one_place_and_is_refused_until_there_is_one(tmp_path):
    project = tomllib.loads(links.PYPROJECT.read_text())["project"]
    file = tmp_path / "pyproject.toml"
    file.write_text(f'[project]\nversion = "9.9"\n[project.urls]\nRepository = "{GITHUB}.git"\n')
    assert links.read_source(file) == (GITHUB, "v9.9")
    file.write_text('[project]\nversion = "9.9"\n[project.urls]\nRepository = "https://repository.invalid/x.git"\n')
    with pytest.raises(ValueError, match="nothing is published yet"):
        links.read_source(file)
    if ".invalid" not in project["urls"]["Repository"]:
        assert links.read_source()[1] == f"v{project['version']}"


def without_comments(text):
    return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("//"))


def test_the_development_container_builds_the_image_without_cuda_and_installs_the_checkout():
    folder = ROOT / ".devcontainer"
    settings = json.loads(without_comments((folder / "devcontainer.json").read_text()))
    build = settings["build"]
    dockerfile = (folder / build["dockerfile"]).resolve().read_text()
    assert (folder / build["context"]).resolve() == ROOT
    assert set(build["args"]) <= set(re.findall(r"^ARG (\w+)", dockerfile, re.M))
    assert "cuda" not in build["args"]["BASE"] and build["args"]["TORCH_INDEX"] == "cpu"
    assert "-c constraints.txt -e '.[lab,test]'" in settings["postCreateCommand"]
    for path in settings["customizations"]["codespaces"]["openFiles"]:
        assert (ROOT / path).exists()


def test_the_image_takes_its_torch_from_constraints_and_gets_all_that_it_copies():
    dockerfile = (ROOT / "deploy/runpod/Dockerfile").read_text()
    assert "torch==" not in dockerfile.replace("grep '^torch=='", "")
    assert "-c /opt/ftkit-source/constraints.txt" in dockerfile
    left_out = (ROOT / "deploy/runpod/Dockerfile.dockerignore").read_text().split()
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {*wheel["packages"], *wheel["force-include"], "pyproject.toml", "README.md", "constraints.txt", "deploy"}
    assert not needed & set(left_out) and {".git", ".venv", "tests"} <= set(left_out)


def test_binder_takes_the_cpu_build_of_torch_and_the_pinned_versions():
    folder = ROOT / "binder"
    lines = [line for line in (folder / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert f"--extra-index-url {CPU_INDEX}" in lines and "-e .[lab]" in lines
    (constraints,) = [folder / line.split()[1] for line in lines if line.startswith("-c ")]
    assert constraints.resolve() == ROOT / "constraints.txt"
    python = (folder / "runtime.txt").read_text().strip().removeprefix("python-")
    needs = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert Requirement(f"python{needs}").specifier.contains(python)


def test_conda_takes_the_cpu_build_of_torch_unless_its_line_is_removed():
    (pip,) = [
        item
        for item in yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
        if item != "pip" and isinstance(item, dict)
    ]
    assert pip["pip"] == [f"--extra-index-url {CPU_INDEX}", "-c constraints.txt", "-e .[lab,test]"]


@pytest.mark.parametrize("page", ["deploy/README.md", "deploy/runpod/README.md"])
def test_what_the_pages_name_exists(page):
    text = (ROOT / page).read_text()
    assert dead_links(text, (ROOT / page).parent) == []
    assert missing_targets(text) == missing_paths(text) == not_runnable(text) == unknown_flags(text) == set()
    assert unquote(text) == text
