"""Write the table of GPUs in this folder's README.md: what a fine-tune needs, estimated as `ftkit memory` does.

    python deploy/runpod/gpu_table.py

Each row is a launch line of `ftkit finetune`, read by the program's own parser, and its memory that of the plan which
the program makes of it. Only the sizes of RunPod's GPUs are data here.
"""

import re
from dataclasses import replace
from pathlib import Path

from ftcourse.launch_lines import memory_plan, read_launch_line
from ftkit.memory import estimate_memory
from ftkit.memory.plan import published_meta_model

PAGE = Path(__file__).resolve().parent / "README.md"
BLOCK = re.compile(r"(<!-- gpus: written by gpu_table.py -->\n).*(?=<!-- end of gpus -->)", re.S)
GIB = 2**30
# GiB -> GPUs of RunPod's with bfloat16 and that memory, from the page "GPU types" of its documentation (August 2026).
GPUS = {
    24: "RTX 4090, L4",
    32: "RTX 5090",
    48: "L40S, RTX 6000 Ada, A40",
    80: "H100, A100",
    96: "RTX PRO 6000",
    141: "H200",
    180: "B200",
    288: "B300",
}
MODELS = {"llama-3-8b": "Llama 3 8B", "llama-2-13b": "Llama 2 13B", "llama-3-70b": "Llama 3 70B"}
SETTINGS = "--activation_checkpointing --micro_batch_size 1 --max_length 2048"  # one sequence per GPU and step
METHODS = {
    "QLoRA, rank 16": "--method lora --lora_r 16 --load_in_4bit",
    "LoRA, rank 16": "--method lora --lora_r 16",
    "all weights, AdamW": "",
}
COUNTS = (1, 2, 4, 8)


def peak_bytes(model: str, method: str, gpus: int) -> int | None:
    """Estimated peak of each of `gpus` GPUs; None where the program does not run the method on so many."""
    if "--load_in_4bit" in method and gpus > 1:
        return None
    flags = f"--model {model} --output runs/a {SETTINGS} --batch_size {gpus} {method}"
    line = read_launch_line(f"torchrun --standalone --nproc-per-node {gpus} -m ftkit.finetune {flags}")
    plan = memory_plan(line, line.config.max_length)
    if "--load_in_4bit" in method:
        plan = replace(plan, base_dtype="nf4")
    return estimate_memory(published_meta_model(model), plan).peak


def cell(peak: int | None) -> str:
    """The peak, and the smallest GPU that holds it with a tenth to spare."""
    if peak is None:
        return "–"
    size = next((gib for gib in GPUS if peak <= 0.9 * gib * GIB), None)
    return f"{peak / GIB:.0f} GiB → " + (f"**{size}**" if size else "no GPU")


def table() -> str:
    """The table in Markdown: model and method by number of GPUs."""
    lines = ["| model | what trains | " + " | ".join(f"{n} GPU{'s' * (n > 1)}" for n in COUNTS) + " |"]
    lines.append("| --- " * (2 + len(COUNTS)) + "|")
    for model, name in MODELS.items():
        for method, flags in METHODS.items():
            cells = (cell(peak_bytes(model, flags, gpus)) for gpus in COUNTS)
            lines.append(f"| {name} | {method} | " + " | ".join(cells) + " |")
    named = "; ".join(f"{gib}: {names}" for gib, names in GPUS.items())
    notes = f"GiB of a GPU, and which have them: {named}.\nSettings: `{SETTINGS}`, and a batch of one sequence per GPU."
    return "\n".join(lines) + f"\n\n{notes}\n"


def write(page: Path = PAGE) -> None:
    """Put the table between its markers."""
    page.write_text(BLOCK.sub(lambda found: f"{found[1]}{table()}", page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    write()
