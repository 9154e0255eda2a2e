"""05's checkers: a solution is right, a stub "Not solved yet", a wrong answer gets the hint meant for it."""

from ftcourse.exercises.chat_templates import (
    CHANGES,
    check_costly_changes,
    check_marked_template,
    check_never_stop,
)
from ftkit.loss import IGNORE_INDEX

from .shown import checker_tests

UNMARKED = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.role == 'assistant' %}{{ m.content }}<|end|>"
    "{% else %}{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
ANSWER = "{{ m.content }}<|end|>{% else"
MARKED = UNMARKED.replace(ANSWER, "{% generation %}{{ m.content }}<|end|>{% endgeneration %}{% else")


def answer_as(text):
    return UNMARKED.replace(ANSWER, text + "{% else")


WRONG_TEMPLATES = {
    "nothing is marked": UNMARKED,
    "<|end|> is outside": answer_as("{% generation %}{{ m.content }}{% endgeneration %}<|end|>"),
    "only <|end|> is marked": answer_as("{{ m.content }}{% generation %}<|end|>{% endgeneration %}"),
    "<|assistant|> is marked": (
        "{{ bos_token }}{% for m in messages %}"
        "{% if m.role == 'assistant' %}{% generation %}<|assistant|>{{ m.content }}<|end|>{% endgeneration %}"
        "{% else %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    ),
    "other turns are marked": "{% generation %}" + UNMARKED + "{% endgeneration %}",
    "part of an answer is missing": answer_as(
        "{% if loop.last %}{% generation %}{{ m.content }}<|end|>{% endgeneration %}"
        "{% else %}{{ m.content }}<|end|>{% endif %}"
    ),
    "writes other tokens": MARKED.replace("<|end|>{% endgeneration %}", "<|end|>\n{% endgeneration %}"),
    "generation prompt is gone": MARKED.partition("{% if add_generation_prompt %}")[0],
    "Jinja cannot read it": MARKED.replace("{% endgeneration %}", ""),
    "a template is a string": [MARKED],
}


REAL = {None: 24, "BOS twice": 24, "no generation prompt": 0, "a space at its end": 1, "a system text first": 20}


def real(change):
    return REAL.get(change, 17)


def costly(ask, limit=0.5):
    return [change for change in CHANGES if ask(change) < limit * ask(None)]


WRONG_CHANGES = {
    "lose any answer at all": lambda ask: costly(ask, 1),
    "the other way round": lambda ask: [change for change in CHANGES if change not in costly(ask)],
    "half of those as trained": lambda ask: [change for change in CHANGES if ask(change) < 16],
    "it should be": lambda ask: ["no generation prompt", "a space at its end"],  # what the real one gives
    "names out of CHANGES": lambda ask: ["everything"],
    "a list": lambda ask: 3,
}


def never_right(labels, stops):
    rows = [[label for label in row.tolist() if label != IGNORE_INDEX] for row in labels]
    return [k for k, row in enumerate(rows) if not row or row[-1] not in stops]


WRONG_ROWS = {
    "that do learn to stop": lambda labels, stops: [0, 3, 5],
    "does not end the second": lambda labels, stops: [
        k for k, row in enumerate(labels) if not stops & set(row.tolist())
    ],
    "without any label": lambda labels, stops: [
        k for k in never_right(labels, stops) if (labels[k] != IGNORE_INDEX).any()
    ],
    "the last place may be padding": lambda labels, stops: [
        k for k, row in enumerate(labels) if row[-1].item() not in stops
    ],
    "several stop tokens": lambda labels, stops: never_right(labels, {min(stops)}),
    "count from 0": lambda labels, stops: [k + 1 for k in never_right(labels, stops)],
    "rows 1, 2 and 4 never learn": lambda labels, stops: [1],
    "a list of row numbers": lambda labels, stops: 3,
}

EXERCISES = [
    (check_marked_template, lambda: MARKED, {h: lambda t=t: t for h, t in WRONG_TEMPLATES.items()}),
    (lambda answer: check_costly_changes(answer, real), costly, WRONG_CHANGES),
    (check_never_stop, never_right, WRONG_ROWS),
]

test_solution, test_stub, test_wrong_answer = checker_tests(EXERCISES)


def test_other_roads_to_the_right_answer_are_right():
    spread = MARKED.replace("{% generation %}", "\n    {%- generation %}\n        ").replace(
        "{{ m.content }}<|end|>{% endg", "{{- m.content + '<|end|>' }}\n    {%- endg"
    )
    assert check_marked_template(lambda: spread).right
    assert check_never_stop(lambda labels, stops: set(never_right(labels, stops))).right


def test_the_notebook_may_promise_twelve_tokens():
    assert "12 of 42 tokens" in check_marked_template(lambda: MARKED).message


def test_the_real_service_is_asked_too():
    message = check_costly_changes(costly, real).message
    assert "as trained 24" in message and "no generation prompt 0, a space at its end 1." in message
    by_name = {None: 10, "BOS twice": 4, "lower case": 4}  # right on the made-up ones only
    assert not check_costly_changes(costly_once(), lambda change: by_name.get(change, 10)).right


def costly_once():
    """Right twice, then stuck on its first answer."""
    answers = []

    def changes(ask):
        answers.append(costly(ask))
        return answers[-1] if len(answers) < 3 else []

    return changes


def test_a_checker_never_raises():
    def angry(*args):
        raise SyntaxError("no")

    for check, _, _ in EXERCISES:
        assert repr(check(angry)).startswith("Not yet: your code raised SyntaxError: no (in `angry`, line ")
