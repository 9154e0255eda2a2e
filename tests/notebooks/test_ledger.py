"""The ledger and the generated tables of the pages are what notebooks and records say, and nothing else."""

import json
import re
import shutil

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

import build
import ledger
from ftcourse.claims import VERDICTS, Claim
from ftcourse.contents import CONTENTS

HEAD = """\
# 01 · Gradient masks
One sentence of promise,
on two lines.

- **Prerequisites:** none.
- **Hardware:** any processor.
- **Time:** about 5 minutes
  on two cores.
"""
HELD = Claim("water | ice is wet", "Thales", True, "3 drops of 3", "freezing", "rain", 3, only_if="above 0 °C")
PAGES = {
    "README.md": "# x\n<!-- notebooks: a -->\nold\nold\n<!-- end of notebooks -->\n"
    "<!-- verdicts -->\n<!-- end of verdicts -->\n",
    "docs/claims.md": "# y\n<!-- claims: b -->\nold\n<!-- end of claims -->\nkept\n",
    "docs/costs.md": "<!-- bench: c -->\n<!-- end of bench -->\n<!-- drill: d -->\n<!-- end of drill -->\n"
    "<!-- throughput: t -->\n<!-- end of throughput -->\n<!-- growth: e -->\n<!-- end of growth -->\n",
}
RECORDS = ("bench_cpu.json", "drill.json")


def notebook(head=HEAD, printed=f"before\n{HELD}\n", tags=()):
    cell = new_code_cell("x", metadata={"tags": list(tags)}, outputs=[new_output("stream", text=printed)])
    return new_notebook(cells=[new_markdown_cell(head), cell])


@pytest.fixture
def course(tmp_path):
    """A checkout of one notebook; call it to write another one."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "data" / "results").mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    for name, text in PAGES.items():
        (tmp_path / name).write_text(text)
    for name in RECORDS:
        shutil.copy(ledger.ROOT / "data" / "results" / name, tmp_path / "data" / "results" / name)

    def write(nb, name="01_gradient_masks"):
        nbformat.write(nb, tmp_path / "notebooks" / f"{name}.ipynb")
        return tmp_path

    write(notebook())
    write.root = tmp_path
    return write


def test_files_are_what_the_notebooks_say():
    assert list(ledger.out_of_date()) == [], "python notebooks/build.py writes them"
    assert ledger.main(["--check"]) == 0


def test_check_lists_what_is_out_of_date_and_writes_nothing(course, capsys, monkeypatch):
    ledger.update(course.root)
    page = course.root / "docs" / "claims.md"
    page.write_text(PAGES["docs/claims.md"])
    monkeypatch.setattr(ledger, "ROOT", course.root)
    monkeypatch.setattr(ledger.out_of_date, "__defaults__", (course.root,))
    assert ledger.main(["--check"]) == 1
    assert capsys.readouterr().out == "docs/claims.md: out of date\n"
    assert page.read_text() == PAGES["docs/claims.md"]


def test_every_ready_notebook_but_the_map_has_claims_and_every_row_is_whole():
    notebooks, claims = ledger.read_notebooks(ledger.ROOT / "notebooks")
    ready = [row["notebook"] for row in notebooks if row["ready"]]
    built = {path.stem for path in (ledger.ROOT / "notebooks").glob("*.ipynb")} - {ledger.MAP}
    assert set(ready) == built
    assert built - {row["notebook"] for row in claims} == {
        "02b_inside_the_optimizer"
    }  # how it is built; nobody's claim
    for row in claims:
        assert row["verdict"] in VERDICTS
        assert all(row[name] for name in ("claim", "topic", "source", "model", "measured"))
        assert not re.search(r"#\.#|TMP|TIME\]", row["measured"]), "seconds and paths are masked: leave them out"


def test_rows_give_the_head_and_the_claims_of_the_notebook(course):
    notebooks, claims = ledger.read_notebooks(course.root / "notebooks")
    assert notebooks[0] == {
        "notebook": "01_gradient_masks",
        "part": "Which weights move",
        "topic": "gradient masks",
        "ready": True,
        "title": "Gradient masks",
        "promise": "One sentence of promise, on two lines",
        "hardware": "any processor",
        "time": "about 5 minutes on two cores",
    }
    assert [row["ready"] for row in notebooks[1:]] == [False] * (sum(map(len, CONTENTS.values())) - 1)
    assert claims == [
        {
            "notebook": "01_gradient_masks",
            "verdict": "supported under conditions",
            "because": "above 0 °C",
            "claim": HELD.claim,
            "topic": "freezing",
            "source": "Thales",
            "model": "rain",
            "seeds": "3",
            "measured": "3 drops of 3",
        }
    ]


def test_update_writes_all_of_it_once_and_keeps_the_rest_of_the_pages(course):
    names = {path.relative_to(course.root).as_posix() for path in ledger.update(course.root)}
    assert names == {"data/notebooks.json", "data/claims.json", *PAGES}
    assert ledger.update(course.root) == []
    readme, claims, costs = ((course.root / page).read_text() for page in PAGES)
    assert "\nold\n" not in readme + claims
    assert readme.startswith("# x\n<!-- notebooks: a -->\n| notebook |")
    assert "| [01_gradient_masks](notebooks/01_gradient_masks.ipynb) | One sentence" in readme
    assert "on two lines | 5 minutes |" in readme  # the run time of its cells is the notebook's to say
    assert "| 02_child_tuning | *planned:* child-tuning |" in readme  # planned, so no link
    assert "\n1 claims · supported under conditions 1\n" in readme
    assert claims.startswith("# y\n") and claims.endswith("\nkept\n")
    row = r"| ☑️ **supported under conditions (above 0 °C)** | water \| ice is wet | Thales | rain | 3 | 3 drops of 3 |"
    assert "### Freezing\n\n| verdict |" in claims and row in claims
    group = "<summary>☑️ supported under conditions: 1</summary>\n\n- water | ice is wet ([01](../notebooks"
    assert "### By verdict\n\n<details>\n" + group in claims
    assert "[01](../notebooks/01_gradient_masks.ipynb)" in claims  # from where the page lies
    assert "| AdamW, fused | " in costs and "| checkpoint rename | " in costs
    assert json.loads((course.root / "data" / "claims.json").read_text())[0]["claim"] == HELD.claim


def test_another_record_puts_the_costs_out_of_date(course):
    ledger.update(course.root)
    (course.root / "data" / "results" / "bench_cpu.json").unlink()
    assert list(ledger.out_of_date(course.root)) == [course.root / "docs" / "costs.md"]
    ledger.update(course.root)
    assert "No record is stored" in (course.root / "docs" / "costs.md").read_text()


@pytest.mark.parametrize(
    "nb",
    [
        notebook(printed=str(Claim(HELD.claim, "Thales", False, "0 drops of 3", "freezing", "rain"))),
        notebook(printed=""),
        notebook(head=HEAD.replace("promise", "hope")),
        notebook(tags=["nbval-ignore-output"]),  # no test compares it, so it proves nothing
    ],
)
def test_whatever_a_notebook_says_otherwise_puts_the_files_out_of_date(course, nb):
    ledger.update(course.root)
    assert ledger.out_of_date(course(nb)) != {}


@pytest.mark.parametrize("file", ["data/claims.json", "data/notebooks.json", *PAGES])
def test_an_edit_by_hand_is_noticed(course, file):
    ledger.update(course.root)
    path = course.root / file
    path.write_text(
        path.read_text().replace("Gradient masks", "Magic").replace("supported", "outdated").replace(", fused", "")
    )
    assert list(ledger.out_of_date(course.root)) == [path]


def test_a_number_with_a_letter_is_a_notebook_like_any_other(course):
    head = HEAD.replace("# 01 · Gradient masks", "# 02b · Inside the optimizer")
    course(
        notebook(head, printed=str(Claim("snow is dry", "Thales", False, "0 of 3", "freezing", "rain"))),
        "02b_inside_the_optimizer",
    )
    notebooks, claims = ledger.read_notebooks(course.root / "notebooks")
    assert [row["notebook"] for row in notebooks if row["ready"]] == ["01_gradient_masks", "02b_inside_the_optimizer"]
    assert [row["notebook"] for row in claims] == ["01_gradient_masks", "02b_inside_the_optimizer"]
    ledger.update(course.root)
    readme, page, _ = ((course.root / page).read_text() for page in PAGES)
    assert "| [02b_inside_the_optimizer](notebooks/02b_inside_the_optimizer.ipynb) | One sentence" in readme
    assert "[02b](../notebooks/02b_inside_the_optimizer.ipynb)" in page


@pytest.mark.parametrize("part", ["title", "promise", "hardware", "time"])
def test_a_head_that_lacks_a_part_is_named(course, part):
    gone = {"title": "# 01 · Gradient masks", "promise": "One sentence of promise,\non two lines."}
    line = gone.get(part) or f"- **{part.capitalize()}:**"
    course(notebook(head=HEAD.replace(line, "")))
    with pytest.raises(ledger.LedgerError, match=f"01_gradient_masks.*{part}"):
        ledger.read_notebooks(course.root / "notebooks")


def test_unknown_notebooks_repeated_claims_and_missing_markers_are_named(course):
    course(notebook(printed=f"{HELD}\n{HELD}\n"))
    with pytest.raises(ledger.LedgerError, match="same claim twice"):
        ledger.update(course.root)
    course(notebook())
    for page, name in [("docs/costs.md", "drill"), ("docs/claims.md", "claims"), ("README.md", "verdicts")]:
        (course.root / page).write_text(PAGES[page].replace(f"end of {name}", ""))
        with pytest.raises(ledger.LedgerError, match=f"{page} needs one pair of markers for {name}"):
            ledger.update(course.root)
    course(notebook(), "99_unknown")
    with pytest.raises(ledger.LedgerError, match="99_unknown"):
        ledger.update(course.root)


def test_build_makes_the_map_last_and_again_after_any_other(course, capsys):
    folder = course.root / "notebooks"
    (folder / "source").mkdir()
    for name in (ledger.MAP, "90_other"):
        (folder / "source" / f"{name}.py").write_text("# %%\nprint(1)\n")

    def built(*arguments):
        assert build.main([*arguments, "--folder", str(folder)]) == 0
        return [line.split(":")[0] for line in capsys.readouterr().out.splitlines() if "built" in line]

    assert built() == ["90_other", ledger.MAP]
    assert built() == []
    (folder / "source" / "90_other.py").write_text("# %%\nprint(2)\n")
    assert built("90_other") == ["90_other", ledger.MAP]
