import argparse

import pytest

from ftkit._arguments import parse


@pytest.fixture
def parser():
    parser = argparse.ArgumentParser(prog="x")
    parser.add_argument("--learning_rate", type=float, default=1.0)
    parser.add_argument("--max_steps", type=int)
    return parser


def test_what_is_known_is_parsed(parser):
    assert parse(parser, ["--learning_rate", "2", "--max_steps=3"]) == argparse.Namespace(learning_rate=2, max_steps=3)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--lerning_rate", "2"], "--lerning_rate (did you mean --learning_rate?) 2"),
        (["--max-steps=3"], "--max-steps=3 (did you mean --max_steps?)"),
        (["--zzz"], "unrecognized arguments: --zzz\n"),
        (["max_steps"], "unrecognized arguments: max_steps\n"),
    ],
)
def test_an_unknown_flag_is_answered_with_the_nearest(parser, capsys, arguments, said):
    with pytest.raises(SystemExit) as stop:
        parse(parser, arguments)
    assert stop.value.code == 2 and said in capsys.readouterr().err
