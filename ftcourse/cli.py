"""The command `ftkit`: its subcommands are the programs of the library and of the course."""

import argparse
import atexit
import difflib
import gc
import importlib
import sys

COMMANDS = {  # name: (module whose `main(arguments)` runs it, what --help says)
    "finetune": ("ftkit.finetune.train", "fine-tune a model on conversations, on one process or under torchrun"),
    "chat": ("ftkit.chat.__main__", "check tokenizer, chat template and conversations before training"),
    "chat-with": ("ftkit.chat.talk", "talk to a model on the terminal"),
    "memory": ("ftkit.memory.__main__", "estimate the peak memory of a training step, without loading weights"),
    "merge": ("ftkit.finetune.merge_command", "merge a trained adapter into its base model, and verify the logits"),
    "compare-runs": ("ftkit.divergence.comparison", "find the first step, module and tensor in which two runs differ"),
    "machine": ("ftcourse.machine", "check that this machine can run the course"),
    "lab": ("ftcourse.lab", "copy the notebooks to a folder of yours and open JupyterLab on them"),
    "notebooks": ("ftcourse.copying", "copy the notebooks to a folder of yours, with or without solutions"),
    "progress": ("ftcourse.progress_command", "show which exercises are solved; export and collect it"),
    "slides": ("ftcourse.slides", "make slides from notebooks, as pages that need no network"),
    "handout": ("ftcourse.handout", "print notebooks as PDF, through Chromium"),
}


def make_parser() -> argparse.ArgumentParser:
    import ftkit

    parser = argparse.ArgumentParser(
        prog="ftkit",
        description="Learn fine-tuning, and fine-tune. `ftkit COMMAND --help` explains a command.",
    )
    parser.add_argument("--version", action="version", version=f"ftkit {ftkit.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (_, help_text) in COMMANDS.items():
        commands.add_parser(name, help=help_text, add_help=False)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run a subcommand; returns its exit code. Its own parser reads the arguments after its name."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = make_parser()
    if not arguments or arguments[0].startswith("-"):
        parser.parse_args(arguments or ["--help"])
    name, *rest = arguments
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        parser.error(f"no command {name!r}" + (f": did you mean {near[0]}?" if near else f": {', '.join(COMMANDS)}"))
    gc.disable()  # imports make a million objects that stay: searching them for garbage takes a tenth of the start
    module = importlib.import_module(COMMANDS[name][0])
    gc.freeze()
    atexit.register(gc.unfreeze)  # libraries of compiled code report what is never collected as leaked
    gc.enable()
    return module.main(rest) or 0


if __name__ == "__main__":
    sys.exit(main())
