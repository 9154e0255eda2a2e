"""A call is its name and its arguments, however it is written; what is no call counts as none."""

import json
import keyword

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftcourse.tool_calls import Call, calls_exact, read_call, write_call

LEGS = Call("legs_of", {"animal": "a cat"})


@pytest.mark.parametrize(
    "text",
    [
        'legs_of(animal="a cat")',
        "[legs_of(animal='a cat')]",
        "  legs_of( animal = 'a cat' )\n",
        '{"name": "legs_of", "arguments": {"animal": "a cat"}}',
        '<tool_call>\n{"arguments": {"animal": "a cat"}, "name": "legs_of"}\n</tool_call>',
        json.dumps({"name": "legs_of", "arguments": json.dumps({"animal": "a cat"})}),
    ],
)
def test_the_forms_in_which_models_write_a_call(text):
    assert read_call(text) == LEGS


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A cat has 4 legs.",
        "legs_of(animal=",
        'legs_of("a cat")',  # whose argument?
        'print("hello")',
        "len(planets)",
        "input()",
        "legs_of(animal=cat)",  # a name is no value
        "legs_of(animal=open('x'))",
        "legs_of(**{'animal': 'a cat'})",
        '{"name": "legs_of"}',
        '{"name": 3, "arguments": {}}',
        '{"name": "legs_of", "arguments": "a cat"}',
        '{"name": "legs_of", "arguments": ["a cat"]}',
        '["name", "arguments"]',
        "{}{",
        "\0",
        "(" * 5000,
    ],
)
def test_what_is_no_call(text):
    assert read_call(text) is None


NAMES = st.from_regex(r"[a-z_]{1,12}", fullmatch=True).filter(lambda name: not keyword.iskeyword(name))


@given(NAMES, st.dictionaries(st.sampled_from("abxy"), st.text(), min_size=1))
def test_what_is_written_is_read_back(name, arguments):
    assert read_call(write_call(name, **arguments)) == Call(name, arguments)


def test_a_call_counts_when_name_and_arguments_are_exact():
    wanted = ['add(a="1", b="2")'] * 5
    said = [
        'add(b="2", a="1")',
        'add(a="2", b="1")',
        'sum(a="1", b="2")',
        "1 plus 2 is 3.",
        'add(a="1", b="2") ',
    ]
    assert calls_exact(said, wanted) == 2 / 5


def test_answers_in_words_are_not_judged_as_calls():
    assert calls_exact(["Paris.", "Rome."], ["Paris.", 'print("hi")']) is None
    assert calls_exact(["Paris.", 'add(a="1")'], ["Paris.", 'add(a="1")']) == 1


def test_answers_and_references_must_be_equally_many():
    with pytest.raises(ValueError):
        calls_exact(['add(a="1")'], [])
