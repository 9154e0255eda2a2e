"""Seconds and memory of `ftkit finetune` against rows, sequence length, ranks and parameters."""
