"""A conversation on the terminal: what is typed reaches the model in its template, and the answer is its own."""

import builtins

import pytest

from ftkit.chat.talk import main
from ftkit.evaluate import generate_answers
from ftkit.models import load_base
from tests.tiny import save_foreign


@pytest.fixture
def typed(monkeypatch):
    lines = []

    def read(prompt):
        if not lines:
            raise EOFError
        return lines.pop(0)

    monkeypatch.setattr(builtins, "input", read)
    return lines


def test_each_line_gets_the_answer_of_generate(tmp_path, typed, capsys):
    folder = str(save_foreign(tmp_path / "qwen"))
    typed += ["the cat", "sat on", ""]
    capsys.readouterr()
    assert main([folder, "--max_new_tokens", "6", "--system", "Be brief."]) == 0
    said = capsys.readouterr().out
    model, tokenizer = load_base(folder)
    first = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "the cat"}]
    [answer] = generate_answers(model, tokenizer, [first], max_new_tokens=6)
    second = [*first, {"role": "assistant", "content": answer.text}, {"role": "user", "content": "sat on"}]
    [other] = generate_answers(model, tokenizer, [second], max_new_tokens=6)
    assert answer.text in said and said.rstrip("\n").endswith(other.text.rstrip("\n"))


def test_what_cannot_be_talked_to(tmp_path, typed, capsys):
    folder = save_foreign(tmp_path / "qwen")
    (folder / "chat_template.jinja").unlink()
    assert main([str(folder)]) == 2 and "has no chat template" in capsys.readouterr().err
    assert main([str(tmp_path / "nowhere")]) == 2 and "nowhere" in capsys.readouterr().err
