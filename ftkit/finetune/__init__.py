"""The sharded fine-tuning program: `python -m ftkit.finetune`, one process or every rank of torchrun."""
