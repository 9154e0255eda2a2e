"""A menu of questions over the answers that several models gave, each compared with the reference."""

import html

import ipywidgets

from . import Explorer


class AnswerExplorer(Explorer):
    """A menu of questions over a table of answers, one row for each model.

    Attributes: `menu`, the control; `index`, which question is shown.
    """

    hint = "choose one"

    def __init__(self, questions: list[str], answers: dict[str, list[str]], references: list[str]):
        self.answers, self.references = answers, references
        self.menu = ipywidgets.Dropdown(
            options=[(question, i) for i, question in enumerate(questions)],
            description="question",
            layout=ipywidgets.Layout(width="36em"),
        )
        super().__init__(self.menu)

    @property
    def index(self) -> int:
        return self.menu.value

    def state(self) -> str:
        return f"{len(self.references)} questions"

    def draw(self) -> str:
        wanted = self.references[self.index]
        rows = [("wanted", wanted, "")]
        for label, answers in self.answers.items():
            said = answers[self.index]
            rows.append((label, said, "✔ exactly right" if said == wanted else "✘ not exactly"))
        cells = "".join(
            f"<tr><th style='text-align:left;padding-right:1em'>{html.escape(label)}</th>"
            f"<td style='text-align:left;white-space:pre-wrap'>{html.escape(text)}</td><td>{mark}</td></tr>"
            for label, text, mark in rows
        )
        return f'<table aria-live="polite">{cells}</table>'


def answer_explorer(questions: list[str], answers: dict[str, list[str]], references: list[str]) -> AnswerExplorer:
    """Return an `AnswerExplorer`; `answers` holds a list of answers for each label, in the questions' order.

    Raises ValueError when the lists differ in length or are empty.
    """
    lengths = {len(questions), len(references), *map(len, answers.values())}
    if len(lengths) != 1 or not questions:
        raise ValueError(f"questions, references and answers should be equally long, and are {sorted(lengths)}")
    return AnswerExplorer(questions, answers, references)
