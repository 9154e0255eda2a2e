"""Function calls that a model writes: read from its answer, and compared with the one that was wanted."""

import ast
import json
from collections.abc import Sequence
from typing import Any, NamedTuple


class Call(NamedTuple):
    name: str
    arguments: dict[str, Any]


def write_call(name: str, **arguments: str) -> str:
    """The call in Python's form, as Llama 4 and others write it: `add(a="1", b="2")`."""
    return f"{name}({', '.join(f'{key}={json.dumps(value, ensure_ascii=False)}' for key, value in arguments.items())})"


def read_call(text: str) -> Call | None:
    """The one call in a text, None where there is none: Python's form, or a JSON object with `name` and `arguments`.

    Tags and words around a JSON object, and square brackets around Python's form, are passed over. Arguments in JSON
    may be an object or, as OpenAI's format has it, a string that holds one.
    """
    return _read_json(text) or _read_python(text)


def calls_exact(answers: Sequence[str], references: Sequence[str]) -> float | None:
    """The fraction of the references' calls that the answers make with the same name and equal arguments.

    The order of arguments and white space do not count. None where no reference holds a call.
    """
    wanted = [(a, call) for a, text in zip(answers, references, strict=True) if (call := read_call(text))]
    return sum(read_call(answer) == call for answer, call in wanted) / len(wanted) if wanted else None


def _read_json(text: str) -> Call | None:
    try:
        found = json.loads(text[text.find("{") : text.rfind("}") + 1])
        arguments = found["arguments"]
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    except (ValueError, KeyError, TypeError):
        return None
    if not isinstance(found.get("name"), str) or not isinstance(arguments, dict):
        return None
    return Call(found["name"], arguments)


def _read_python(text: str) -> Call | None:
    """Nothing is evaluated: the text is parsed, and only literals are taken as arguments."""
    try:
        call = ast.parse(text.strip().removeprefix("[").removesuffix("]"), mode="eval").body
        named = isinstance(call, ast.Call) and call.keywords and not call.args
        if not named or None in {keyword.arg for keyword in call.keywords}:
            return None  # an answer in code, such as len(x), is no such call: its arguments have no names
        return Call(ast.unparse(call.func), {k.arg: ast.literal_eval(k.value) for k in call.keywords})
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
