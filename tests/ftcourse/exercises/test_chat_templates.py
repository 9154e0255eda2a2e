"""05's checkers: a solution is right, a stub "Not solved yet", a wrong answer gets the hint meant for it."""

from ftcourse.exercises.chat_templates import check_marked_template, check_never_stop, check_pad_choice
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


def pad_right(pad, unk, ends):
    return next((token for token in (pad, unk) if token and token not in ends), "<|pad|>")


WRONG_PADS = {
    "is defined and ends no answer": lambda pad, unk, ends: "<|pad|>",
    "it has a row already": lambda pad, unk, ends: pad if pad and pad not in ends else "</s>" if unk else "<|pad|>",
    "that is defined ends an answer": lambda pad, unk, ends: pad or unk or "<|pad|>",
    "EOS is not the only token": lambda pad, unk, ends: next(
        (token for token in (pad, unk) if token and token != "</s>"), "<|pad|>"
    ),
    "neither is defined": lambda pad, unk, ends: next(
        (token for token in (pad, unk) if token and token not in ends), "<|pad|>" if pad else "</s>"
    ),
    "unk may end an answer": lambda pad, unk, ends: pad if pad and pad not in ends else unk if unk else "<|pad|>",
    "a token is a string": lambda pad, unk, ends: 3,
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
    (check_pad_choice, pad_right, WRONG_PADS),
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


def test_a_checker_never_raises():
    def angry(*args):
        raise SyntaxError("no")

    for check, _, _ in EXERCISES:
        assert repr(check(angry)) == "Not yet: your code raised SyntaxError: no"
