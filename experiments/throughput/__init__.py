"""Throughput of `ftkit finetune` beside TRL's SFTTrainer: the same batches, in runs that alternate."""
