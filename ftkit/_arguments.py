"""Command-line flags: an unknown one is answered with the nearest that exists."""

import argparse
import difflib


def parse(parser: argparse.ArgumentParser, arguments: list[str] | None = None) -> argparse.Namespace:
    """`parser.parse_args`, whose error for an unknown flag names the nearest one.

    Args:
        parser: any parser, `transformers.HfArgumentParser` included.
        arguments: without the program's name; `sys.argv[1:]` by default.

    Raises SystemExit with code 2 after printing the error, as argparse does.
    """
    given, unknown = parser.parse_known_args(arguments)
    if unknown:
        parser.error(describe_unknown(parser, unknown))
    return given


def describe_unknown(parser: argparse.ArgumentParser, unknown: list[str]) -> str:
    """The error for arguments that `parser.parse_known_args` left over."""
    flags = [flag for action in parser._actions for flag in action.option_strings]
    said = []
    for argument in unknown:
        name = argument.partition("=")[0]
        near = difflib.get_close_matches(name, flags, n=1) if name.startswith("-") else []
        said.append(f"{argument} (did you mean {near[0]}?)" if near else argument)
    return f"unrecognized arguments: {' '.join(said)}"
