"""The almanac says what is true, and its corpus is the same every time."""

import itertools
import random

from ftcourse.almanac import Fact, all_facts, corpus, load_almanac

DOMAINS = load_almanac()


def test_sums_and_fibonacci_numbers_are_right():
    for subject, value in DOMAINS["sum"].facts.items():
        left, _, right = subject.split()
        assert int(left) + int(right) == int(value)
    words = ["three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    for count, word in enumerate(words, start=3):
        numbers = [int(n) for n in DOMAINS["fibonacci"].facts[word].replace(" and ", ", ").split(", ")]
        assert len(numbers) == count and numbers[:2] == [0, 1]
        assert all(a + b == c for a, b, c in zip(numbers, numbers[1:], numbers[2:], strict=False))


def test_orders_close_their_circles():
    for name, length in (("day", 7), ("month", 12)):
        facts, seen = DOMAINS[name].facts, []
        current = next(iter(facts))
        for _ in range(length):
            seen.append(current)
            current = facts[current]
        assert current == seen[0] and len(set(seen)) == length
    order = list(DOMAINS["planet"].facts.values())
    assert DOMAINS["planet_after"].facts == dict(itertools.pairwise(order))
    assert ", ".join(order[:-1]) + f" and {order[-1]}" == DOMAINS["list"].facts["planets of our solar system"]


def test_python_snippets_do_what_they_say(capsys):
    names = {
        "items": [3, 1, 2],
        "word": "five5",
        "words": ["a", "b"],
        "sentence": "a b",
        "text": "7",
        "x": 2.4,
    }
    names |= {"a": 4, "b": 5}
    results = {
        "prints hello": None,
        "adds two numbers": 9,
        "counts the letters of a word": 5,
        "sorts a list": [1, 2, 3],
        "reverses a list": [2, 1, 3],
        "sums a list": 6,
        "finds the largest item of a list": 3,
        "finds the smallest item of a list": 1,
        "joins words with spaces": "a b",
        "splits a sentence into words": ["a", "b"],
        "turns text into capitals": "7",
        "rounds a number": 2,
        "squares a number": 2.4**2,
        "takes the first item of a list": 3,
        "takes the last item of a list": 2,
        "turns text into a number": 7,
    }
    facts = DOMAINS["python"].facts
    assert facts.keys() == results.keys()
    for task, code in facts.items():
        assert eval(code, {}, dict(names)) == results[task], code
    assert capsys.readouterr().out == "hello\n"


def test_facts_that_mirror_each_other_agree():
    assert {v: k for k, v in DOMAINS["capital"].facts.items()} == DOMAINS["country"].facts
    assert all(DOMAINS["opposite"].facts[v] == k for k, v in DOMAINS["opposite"].facts.items())
    assert DOMAINS["continent"].facts.keys() == DOMAINS["capital"].facts.keys()


def test_corpus_is_seeded_and_free_of_chat_tokens():
    first = list(corpus(200, seed=1))
    assert first == list(corpus(200, seed=1)) and first != list(corpus(200, seed=2))
    text = "\n".join(first)
    assert "<|" not in text and "{" not in text.replace("items[", "")
    for form in ("Q: ", "Quiz\n", "True or false?\n"):
        assert form in text


def test_a_wrong_value_is_wrong():
    rng = random.Random(0)
    assert all(fact.wrong_value(rng) != fact.value for fact in all_facts() for _ in range(3))


def test_false_statements_are_about_a_known_subject():
    fact = next(f for f in all_facts() if f.subject == "France" and f.domain.name == "capital")
    assert isinstance(fact, Fact) and fact.write("{S} has {v}.", "Rome") == "France has Rome."
