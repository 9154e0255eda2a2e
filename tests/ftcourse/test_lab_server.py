"""The server extension: notebooks stay as they are when they are only opened; the list leaves their sources out."""

import asyncio
import json
from pathlib import Path

import nbformat
from jupyter_server.services.contents.largefilemanager import AsyncLargeFileManager

from ftcourse import lab_server
from ftcourse.copying import source_dir

SPEC = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
LANGUAGE = {"name": "python", "version": "3.13.1", "pygments_lexer": "ipython3", "mimetype": "text/x-python"}


def manager(folder) -> AsyncLargeFileManager:
    contents = AsyncLargeFileManager(root_dir=str(folder))
    lab_server.adapt(contents)
    return contents


def test_saving_an_opened_notebook_leaves_its_bytes(tmp_path):
    path = tmp_path / "00_start_here.ipynb"
    path.write_bytes((source_dir() / path.name).read_bytes())
    before, contents = path.read_bytes(), manager(tmp_path)
    model = asyncio.run(contents.get(path.name))
    model["content"]["metadata"] |= {"kernelspec": SPEC, "language_info": LANGUAGE}  # as JupyterLab does
    asyncio.run(contents.save(model, path.name))
    assert path.read_bytes() == before


def test_another_kernel_and_other_files_are_left_alone(tmp_path):
    contents = manager(tmp_path)
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": SPEC | {"name": "mine"}, "language_info": LANGUAGE})
    asyncio.run(contents.save({"type": "notebook", "format": "json", "content": notebook}, "own.ipynb"))
    metadata = json.loads(Path(tmp_path, "own.ipynb").read_text())["metadata"]
    assert metadata["kernelspec"]["display_name"] == SPEC["display_name"]
    assert metadata["language_info"]["version"] == "3.13.1"
    asyncio.run(contents.save({"type": "file", "format": "text", "content": "notes"}, "notes.txt"))
    assert Path(tmp_path, "notes.txt").read_text() == "notes"


def test_the_list_shows_notebooks_and_not_what_they_are_built_from():
    listed = asyncio.run(manager(source_dir()).get(""))["content"]
    assert {Path(entry["name"]).suffix for entry in listed if entry["type"] != "directory"} == {".ipynb"}
    assert "source" not in [entry["name"] for entry in listed]
