"""Answers of several models: a menu of questions over them, and a form to judge two models' answers blind."""

import html
import random
from collections.abc import Callable, Sequence

import ipywidgets

from ftcourse.evaluation import Preference

from . import Explorer


class AnswerExplorer(Explorer):
    """A menu of questions over a table of answers, one row for each model.

    Attributes: `menu`, the control; `index`, which question is shown.
    """

    hint = "choose one"

    def __init__(self, questions: list[str], answers: dict[str, list[str]], references: list[str]):
        self.answers, self.references = answers, references
        options = [(question, i) for i, question in enumerate(questions)]
        self.menu = ipywidgets.Dropdown(options=options, description="question")
        super().__init__(self.menu)

    @property
    def index(self) -> int:
        return self.menu.value

    def state(self) -> str:
        return f"{len(self.references)} questions"

    def draw(self) -> str:
        expected = self.references[self.index]
        rows = [("expected", expected, "")]
        for label, answers in self.answers.items():
            said = answers[self.index]
            rows.append((label, said, "✔ exact match" if said == expected else "✘ differs"))
        cells = "".join(
            f"<tr><th style='text-align:left;padding-right:1em'>{html.escape(label)}</th>"
            f"<td style='text-align:left;white-space:pre-wrap'>{html.escape(text)}</td><td>{mark}</td></tr>"
            for label, text, mark in rows
        )
        exact = [label for label, answers in self.answers.items() if answers[self.index] == expected]
        self.caption = f"Exact match: {', '.join(exact) or 'none'}."
        return f"<p>{html.escape(self.menu.label)}</p><table>{cells}</table>"


def answer_explorer(questions: list[str], answers: dict[str, list[str]], references: list[str]) -> AnswerExplorer:
    """Return an `AnswerExplorer`; `answers` holds a list of answers for each label, in the questions' order.

    Raises ValueError when the lists differ in length or are empty.
    """
    _validate_lengths(questions, references, *answers.values())
    return AnswerExplorer(questions, answers, references)


class BlindForm(Explorer):
    """Two models' answers side by side, without their names, and a button for each judgement.

    The order of the questions, and which model stands on the left, are drawn from a seed. Equal answers are ties and
    are not shown. Names and counts appear when every pair is judged.

    Attributes:
        buttons: "left", "right", "tie" and "undo".
        judged: the judgements so far, in the order of the pairs: "left", "right" or "tie".
        identical: how many pairs were equal.
    """

    hint = "press a button"

    def __init__(
        self,
        questions: Sequence[str],
        answers: dict[str, Sequence[str]],
        references: Sequence[str],
        seed: int = 0,
        at_most: int | None = None,
    ):
        self.names = tuple(answers)
        self.questions, self.references, self.answers = questions, references, tuple(answers.values())
        rng = random.Random(seed)
        differ = [i for i, (a, b) in enumerate(zip(*self.answers, strict=True)) if a != b]
        self.identical = len(questions) - len(differ)
        rng.shuffle(differ)
        self.pairs = [(i, rng.randrange(2)) for i in differ[:at_most]]  # question; which model stands on the left
        self.judged: list[str] = []
        labels = {"left": "left is better", "right": "right is better", "tie": "tie", "undo": "undo"}
        self.buttons = {name: ipywidgets.Button(description=label) for name, label in labels.items()}
        super().__init__(list(self.buttons.values()))
        for name, button in self.buttons.items():
            button.on_click(lambda _, name=name: self.press(name))

    def press(self, name: str) -> None:
        """What a click on a button does. Raises KeyError for a button that is not there."""
        if name not in self.buttons:
            raise KeyError(f"{name!r} is no button: give one of {', '.join(self.buttons)}")
        if name == "undo":
            self.judged = self.judged[:-1]
        elif not self.done:
            self.judged = [*self.judged, name]
        self.redraw()

    @property
    def done(self) -> bool:
        return len(self.judged) == len(self.pairs)

    def shown(self) -> tuple[str, str, str, str]:
        """The question, the left and the right answer, and the reference of the pair to be judged."""
        i, left = self.pairs[len(self.judged)]
        return self.questions[i], self.answers[left][i], self.answers[1 - left][i], self.references[i]

    def judge_rest(self, rule: Callable[[str, str, str, str], str]) -> None:
        """Judge the pairs that are left by a rule: it gets what `shown` returns and names a button."""
        while not self.done:
            self.press(rule(*self.shown()))

    @property
    def result(self) -> Preference:
        """How often the first of the two models won, lost and tied among the judged pairs."""
        sides = [judgement if left == 0 else _swap(judgement) for judgement, (_, left) in self._judged_pairs()]
        return Preference(sides.count("left"), sides.count("right"), sides.count("tie"))

    def _judged_pairs(self):
        return zip(self.judged, self.pairs[: len(self.judged)], strict=True)

    def state(self) -> str:
        return f"{len(self.judged)} of {len(self.pairs)} pairs judged"

    def draw(self) -> str:
        self.caption = f"{self.state()}; {self.identical} questions with equal answers are left out."
        if self.done:
            outcome = f"{self.names[0]} against {self.names[1]}: {self.result}"
            self.caption = f"{outcome}. {self.caption}"
            return f"<p>{html.escape(outcome)}</p>"
        question, left, right, reference = self.shown()
        style = "text-align:left;vertical-align:top;white-space:pre-wrap;padding-right:2em"
        heads = "".join(f"<th style='{style}'>{side}</th>" for side in ("left", "right"))
        cells = "".join(f"<td style='{style}'>{html.escape(text)}</td>" for text in (left, right))
        return (
            f"<p><strong>{html.escape(question)}</strong><br>expected: {html.escape(reference)}</p>"
            f"<table><tr>{heads}</tr><tr>{cells}</tr></table>"
        )


def _swap(judgement: str) -> str:
    return {"left": "right", "right": "left"}.get(judgement, judgement)


def blind_form(
    questions: Sequence[str],
    answers: dict[str, Sequence[str]],
    references: Sequence[str],
    *,
    seed: int = 0,
    at_most: int | None = None,
) -> BlindForm:
    """Return a `BlindForm` over the answers of two models, of at most so many pairs.

    Raises ValueError when the lists differ in length or are empty, or there are not two models.
    """
    if len(answers) != 2:
        raise ValueError(f"a comparison by pairs needs two models, and there are {len(answers)}")
    _validate_lengths(questions, references, *answers.values())
    return BlindForm(questions, answers, references, seed, at_most)


def _validate_lengths(questions: Sequence[str], *others: Sequence[str]) -> None:
    lengths = {len(questions), *map(len, others)}
    if len(lengths) != 1 or not questions:
        raise ValueError(f"questions, references and answers should be equally long, and are {sorted(lengths)}")
