"""What a step of child-tuning costs beside a step of AdamW: `python -m experiments.optimizer_speed`."""
