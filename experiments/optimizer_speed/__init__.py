"""The cost of a child-tuning step compared with AdamW: `python -m experiments.optimizer_speed`."""
