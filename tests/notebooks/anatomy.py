"""The parts that every notebook has, and the limits that keep it readable; `violations` lists what is amiss.

The map (00_start_here) teaches nothing itself, so it is let off a lesson's parts. tests/notebooks/test_anatomy.py
breaks each rule on purpose.
"""

import re
from pathlib import Path

from build import tagged

ALT_WORDS = 6  # of a picture's alternative text, at least
LINES, LINES_AT_MOST = 12, 30  # of code in a cell: for three cells in four, and for any
WIDTH = 105  # characters of a line of code that JupyterLab shows in a window of 1,280 pixels, beside its files
WORDS, WORDS_AT_MOST = 60, 90  # of prose in a text cell: the same
OUTPUT_BYTES, NOTEBOOK_BYTES = 150_000, 1_000_000
SECRET = re.compile(
    r"\b(hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{30,}|AIza[\w-]{30,})"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY"
)
MACHINE_PATH = re.compile(
    r"(?:(?<![\w.])|(?<=\x1b\[\d\dm))/(?:home|Users|root|work|workspace|mnt|opt|srv|usr|var|private|tmp)/\w|[A-Z]:\\Users|/site-packages/"
)
# An import of ours, or a dotted name, and in it what no learner should depend on.
OURS = re.compile(r"^ *(?:from|import) (?:ftkit|ftcourse)\b(?:[^\n(]*\([^)]*|[^\n]*)|\b(?:ftkit|ftcourse)[.\w]+", re.M)
PRIVATE = re.compile(r"\b_(?!_)\w+")
# Installing "ftkit" and no address or folder: from whoever owns that name.
BARE_NAME = re.compile(r"\binstall\b[^#]*(?<![./\w-])ftkit\b(?!/|\S* @ )")


def code_cells(nb):
    return [cell for cell in nb.cells if cell.cell_type == "code"]


def text_of(cells):
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def output_text(output):
    """Everything readable in one output, as one string."""
    parts = [output.get("text", ""), output.get("evalue", ""), *output.get("traceback", [])]
    return "\n".join(parts + [str(value) for value in output.get("data", {}).values()])


def verdicts(cell):
    """The headlines of the checkers' verdicts among a cell's outputs, in order; see ftcourse.exercises.Verdict."""
    shown = [out.get("text") or out.get("data", {}).get("text/plain", "") for out in cell.get("outputs", [])]
    return re.findall(r"^(Right|Not solved yet|Not yet)\b", "\n".join(shown), re.M)


def prose_words(source):
    """Words of running text: no headings, lists, tables, formulas, code or folded parts."""
    text = re.sub(r"```.*?```|\$\$.*?\$\$|<details>.*?</details>", "", source, flags=re.S)
    text = re.sub(r"\$[^$\n]+\$", "", text)
    lines = [line for line in text.splitlines() if not re.match(r"\s*(#|\||[-*+] |\d+\. |!\[|<)", line)]
    return len(" ".join(lines).split())


def unreadable_pictures(output):
    """What keeps a reader who does not see the pictures of an output from what they say."""
    data = output.get("data", {})
    page = data.get("text/html", "")
    if "image/svg+xml" in data and "<img" not in page:
        yield "has a picture that JupyterLab shows without alternative text: use picture_html"
    if "<svg" in page:
        yield "has an SVG inside of HTML, which loses all but its words in a notebook that is not trusted"
    for image in re.findall(r"<img\b[^>]*>", page):
        alt = re.search(r'\balt="([^"]*)"', image)
        if alt is None or len(alt[1].split()) < ALT_WORDS:
            yield f"has a picture whose alternative text is {alt[1] if alt else ''!r}: say what it shows"


def mostly(sizes, usual, limit, what):
    too_long = [size for size in sizes if size > usual]
    if max(sizes, default=0) > limit:
        yield f"{max(sizes)} {what} in one cell; {limit} is the limit"
    if len(too_long) > len(sizes) / 4:
        yield f"{len(too_long)} of {len(sizes)} cells have over {usual} {what}"


def opening(nb):
    first = next((n for n, cell in enumerate(nb.cells) if cell.cell_type == "code"), len(nb.cells))
    head = text_of(nb.cells[:first])
    if not head.startswith("# "):
        yield "does not open with a title"
    for part in ("You will be able to", "Prerequisites", "Hardware", "minutes"):
        if part.lower() not in head.lower():
            yield f"its opening does not say: {part}"


def set_up(nb):
    first = code_cells(nb)[0].source if code_cells(nb) else ""
    if '"google.colab" in sys.modules' not in first or "import " not in first:
        yield "its first code cell is not a set-up cell: Colab guard and imports"
    for cell in code_cells(nb):
        if "sys.path" in cell.source:
            yield "changes sys.path"
        if re.search(r"\b(Popen|ThreadPoolExecutor|ProcessPoolExecutor|multiprocessing)\b", cell.source):
            yield "starts what an interrupt ends or a killed kernel leaves behind: use ftcourse.runs"
        guarded = False
        for line in cell.source.splitlines():
            inside = guarded and line[:1] in (" ", "")
            guarded = inside or (line.startswith("if") and "google.colab" in line)
            if re.search(r"\b(pip|conda|uv)\b.*\b(install|add)\b", line):
                if not guarded:
                    yield f"installs outside the Colab guard: {line}"
                elif re.search(r"\b(torch|ipywidgets)\b", line):
                    yield f"replaces what Colab carries: {line}"
                if BARE_NAME.search(line):
                    yield f"installs ftkit by a name that anybody may register: {line}"


def imports(nb):
    for cell in code_cells(nb):
        for name in PRIVATE.findall("\n".join(OURS.findall(cell.source))):
            yield f"uses {name}, which is private: import a public name, or show the lines"


def lengths(nb):
    shown = [cell for cell in code_cells(nb) if not tagged(cell, "hide-input")]
    wide = [line for cell in shown for line in cell.source.splitlines() if len(line) > WIDTH]
    yield from (f"a line of code has {len(line)} characters, so it scrolls: {line}" for line in wide)
    code = [sum(bool(line.strip()) for line in cell.source.splitlines()) for cell in shown]
    yield from mostly(code, LINES, LINES_AT_MOST, "lines of code")
    prose = [prose_words(cell.source) for cell in nb.cells if cell.cell_type == "markdown"]
    yield from mostly([words for words in prose if words], WORDS, WORDS_AT_MOST, "words of prose")


def outputs(nb):
    for number, cell in enumerate(nb.cells):
        if tagged(cell, "nbval-skip") or re.search("#.*(NBVAL_|PYTEST_VALIDATE)", cell.source):
            yield f"cell {number} hides from the tests"
        for out in cell.get("outputs", []):
            text = output_text(out)
            if (
                out.output_type != "stream"
                and "run the cell to" in text
                and not {"image/svg+xml", "text/html"} & set(out.get("data", {}))
            ):
                yield f"cell {number} has a control without a picture of it"
            yield from (f"cell {number} {fault}" for fault in unreadable_pictures(out))
            if len(text) > OUTPUT_BYTES:
                yield f"cell {number} has an output of {len(text):,} bytes"
            if "image/png" in out.get("data", {}):
                yield f"cell {number} draws a PNG, which no test compares; draw an SVG"
            if found := MACHINE_PATH.search(text):
                yield f"cell {number} shows a path of one machine: {text[found.start() : found.end() + 40]!r}"
    if len(str(nb)) > NOTEBOOK_BYTES:
        yield f"is {len(str(nb)):,} bytes long"
    if found := SECRET.search(str(nb)):
        yield f"holds what looks like a secret: {found[0][:6]}…"


def links(nb, folder):
    for target in re.findall(r"\]\((?!https?:|#|mailto:|attachment:)([^)#\s]+)", text_of(nb.cells)):
        if not (folder / target).exists():
            yield f"links to {target}, which is not there"


def lesson(nb):
    """What only a lesson has: something to break, exercises, and the recap."""
    if not any(tagged(cell, "raises-exception") for cell in nb.cells):
        yield "breaks nothing on purpose (no cell tagged raises-exception)"
    for number, cell in enumerate(nb.cells):
        if tagged(cell, "raises-exception") and not re.search(
            r"^with expected_error\(|\A%%px --raises$", cell.source, re.M
        ):
            yield f"cell {number} ends Run All where tags are not read: raise inside of 'with expected_error(…):'"
    if not any("assert " in cell.source for cell in code_cells(nb)):
        yield "asserts nothing"
    ignored = [n for n, cell in enumerate(nb.cells) if tagged(cell, "nbval-ignore-output")]
    compared = [n for n, cell in enumerate(nb.cells) if cell.get("outputs") and n not in ignored]
    if ignored and ignored[-1] > max(compared, default=-1):
        yield "ends with outputs that no test compares"

    places = [n for n, cell in enumerate(nb.cells) if tagged(cell, "exercise")]
    if not 2 <= len(places) <= 3:
        yield f"has {len(places)} exercises, not two or three"
    for place in places:
        after = [tag for cell in nb.cells[place + 1 : place + 3] for tag in cell.metadata.get("tags", [])]
        if after != ["hint", "solution"]:
            yield f"exercise in cell {place}: no hint and solution after it"
        before = text_of(nb.cells[max(place - 1, 0) : place]).lower()
        for part in ("exercise", "difficulty", "minute"):
            if part not in before:
                yield f"exercise in cell {place}: the text before it does not say: {part}"
        if verdicts(nb.cells[place]) not in (["Not solved yet"], []):
            yield f"exercise in cell {place}: its stub is judged {verdicts(nb.cells[place])}"
        elif nb.cells[place].get("outputs") is not None and not verdicts(nb.cells[place]):
            yield f"exercise in cell {place}: no verdict on the stub"

    text = text_of(nb.cells)
    for part in ("Recap", "Recall", "Sources", "Next"):
        if not re.search(rf"^(#+ |\*\*).*\b{part}\b", text, re.M | re.I):
            yield f"has no part headed {part}"
    questions = re.split(r"^(?:#+ |\*\*).*\brecall\b.*$", text, flags=re.M | re.I)[-1]
    asked = re.findall(r"^\d+\. ", re.split(r"^(?:#+ |\*\*)", questions, flags=re.M)[0], re.M)
    if len(asked) != 5:
        yield f"asks {len(asked)} recall questions, not five"


def conclusions(nb):
    """What a learner takes away: numbers, and how far they reach."""
    text = text_of(nb.cells)
    for part in ("What transfers", "Numbers to take away"):
        if not re.search(rf"^(#+ |\*\*).*\b{part}\b", text, re.M):
            yield f"has no part headed {part}"
    for number, cell in enumerate(nb.cells):
        for out in cell.get("outputs", []):
            if found := re.search(r"^.*: (True|False)$", out.get("text", ""), re.M):
                yield f"cell {number} prints a truth where a learner wants a number: {found[0]}"


def violations(nb, folder=Path(), is_map=False):
    """What breaks a rule in a built notebook that lies in `folder`: a sentence each, none if all is well."""
    found = [*opening(nb), *set_up(nb), *imports(nb), *lengths(nb), *outputs(nb), *links(nb, folder)]
    return found if is_map else [*found, *lesson(nb), *conclusions(nb)]
