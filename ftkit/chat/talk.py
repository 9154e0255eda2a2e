"""Talk to a model on the terminal: its chat template, its generation settings, one line a turn.

    ftkit chat-with runs/first/model

An empty line or Ctrl-D ends the conversation.
"""

import argparse
import sys

from transformers import PreTrainedModel, PreTrainedTokenizerBase, TextStreamer

from ftkit._arguments import parse
from ftkit.conversations.rendering import Messages, own_template
from ftkit.distributed.device import pick_device
from ftkit.models import load_base


def answer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, messages: Messages, max_new_tokens: int = 256
) -> str:
    """Generate the next turn of the assistant, printing it as it comes; returns its text without special tokens."""
    given = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    options = {"max_new_tokens": max_new_tokens, "streamer": streamer, "pad_token_id": pad}
    output = model.generate(**given.to(model.device), **options)
    return tokenizer.decode(output[0, given["input_ids"].shape[1] :], skip_special_tokens=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="ftkit chat-with", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL", help="folder or hub name of a model with its tokenizer")
    parser.add_argument("--system", default="", help="text of a system turn at the beginning")
    parser.add_argument("--max_new_tokens", type=int, default=256, help="of an answer at most (%(default)s)")
    args = parse(parser, arguments)
    try:
        model, tokenizer = load_base(args.model)
        if own_template(tokenizer) is None:
            raise ValueError(f"{args.model} has no chat template: give a model that was tuned on conversations")
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    model.to(pick_device().device).eval()
    messages: Messages = [{"role": "system", "content": args.system}] if args.system else []
    while True:
        try:
            said = input("> ")
        except (EOFError, KeyboardInterrupt):
            said = ""
        if not said.strip():
            return 0
        messages.append({"role": "user", "content": said})
        messages.append({"role": "assistant", "content": answer(model, tokenizer, messages, args.max_new_tokens)})


if __name__ == "__main__":
    sys.exit(main())
