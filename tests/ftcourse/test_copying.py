"""`ftkit notebooks`: what is copied, in which variant, and that nothing of a learner's is overwritten unasked."""

import json

import nbformat
import pytest

import build
from ftcourse import cli, copying
from tests import ROOT

SOURCES = sorted((ROOT / "notebooks" / "source").glob("*.py"))


def shape(nb):
    return [(cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in nb.cells]


def shipped(name="01_gradient_masks"):
    return json.loads((copying.source_dir() / f"{name}.ipynb").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """variant -> folder with all notebooks in it."""
    folders = {variant: tmp_path_factory.mktemp(variant) for variant in copying.VARIANTS}
    for variant, folder in folders.items():
        copying.copy_notebooks(folder, variant)
    return folders


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem[:3].strip("_"))
def test_the_solved_copy_is_the_sources_solved_variant_and_the_students_its_stub(copies, source):
    read = build.read_source(source)
    solved = nbformat.read(copies["solutions"] / f"{source.stem}.ipynb", as_version=4)
    assert shape(solved) == shape(build.solve(read))
    student = nbformat.read(copies["student"] / f"{source.stem}.ipynb", as_version=4)
    assert shape(student) == [cell for cell in shape(build.stub(read)) if "solution" not in cell[2]]
    for nb in (solved, student):
        nbformat.validate(nb)
    assert all(not cell.outputs for cell in solved.cells if "exercise" in cell.metadata.get("tags", []))
    hints = [cell for cell in student.cells if "hint" in cell.metadata.get("tags", [])]
    assert len(hints) == sum("exercise" in cell.metadata.get("tags", []) for cell in student.cells)


def test_as_shipped_it_is_the_same_bytes_and_comes_with_the_page_for_assistants(copies):
    for path in copying.source_dir().glob("*.ipynb"):
        assert (copies["shipped"] / path.name).read_bytes() == path.read_bytes()
    for folder in copies.values():
        assert (folder / "AGENTS.md").read_bytes() == (ROOT / "notebooks" / "AGENTS.md").read_bytes()


def test_a_solution_that_is_not_where_the_build_puts_it_is_refused():
    nb = shipped()
    place = next(n for n, cell in enumerate(nb["cells"]) if "solution" in cell["metadata"].get("tags", []))
    nb["cells"][place]["source"] = ["my notes"]
    with pytest.raises(copying.UnreadableNotebook, match="not as the course's build"):
        copying.with_solutions(nb)
    nb = shipped()
    nb["cells"] = [cell for cell in nb["cells"] if "exercise" not in cell["metadata"].get("tags", [])]
    with pytest.raises(copying.UnreadableNotebook):
        copying.with_solutions(nb)


def test_a_learners_file_is_replaced_only_when_it_is_asked_for(tmp_path, capsys):
    mine = tmp_path / "05_chat_templates.ipynb"
    mine.write_text("my work")
    (tmp_path / "AGENTS.md").write_text("my rules")
    for arguments in ([], ["--student"], ["--solutions"]):
        assert cli.main(["notebooks", str(tmp_path), "--only", "05", "08", *arguments]) == 0
        assert mine.read_text() == "my work"
    assert sorted(path.name for path in tmp_path.glob("*.ipynb")) == [mine.name, "08_full_fine_tune.ipynb"]
    assert cli.main(["notebooks", str(tmp_path), "--only", "05", "--overwrite"]) == 0
    assert mine.read_bytes() == (copying.source_dir() / mine.name).read_bytes()
    assert "1 notebooks copied, 1 that were there" in capsys.readouterr().out.splitlines()[-1]
    assert (tmp_path / "AGENTS.md").read_text() == "my rules"


def test_solved_notebooks_go_to_a_folder_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments in ([], ["--solutions"]):
        assert cli.main(["notebooks", "--only", "00", *arguments]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [copying.FOLDER, copying.SOLUTIONS_FOLDER]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "99"], "no notebook '99': there are 00, 01, 02, 02b"),
        (["--overwrite", "SOURCE"], "the notebooks are copied from there"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_written(tmp_path, capsys, arguments, said):
    given = [str(copying.source_dir()) if word == "SOURCE" else word for word in arguments]
    folder = [] if "SOURCE" in arguments else [str(tmp_path / "new")]
    assert cli.main(["notebooks", *folder, *given]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_a_damaged_source_leaves_nothing_behind(tmp_path, monkeypatch, capsys):
    (tmp_path / "course").mkdir()
    (tmp_path / "course" / "01_a.ipynb").write_text("{")
    monkeypatch.setattr(copying, "source_dir", lambda: tmp_path / "course")
    assert cli.main(["notebooks", str(tmp_path / "new"), "--solutions"]) == 2
    assert "01_a.ipynb" in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_the_page_for_assistants_forbids_solutions_and_names_what_the_notebooks_have():
    text = (ROOT / "notebooks" / "AGENTS.md").read_text(encoding="utf-8")
    for words in ("Do not write, complete or paste the answer", "Do not edit a cell tagged `exercise`", "folded hint"):
        assert words in " ".join(text.split())
    tags = {tag for cell in shipped()["cells"] for tag in cell["metadata"].get("tags", [])}
    assert {"exercise", "hint", "solution", "raises-exception"} <= tags
    assert all(f"`{tag}`" in text for tag in ("exercise", "hint", "solution", "raises-exception"))
