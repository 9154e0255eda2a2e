"""`python -m ftkit.finetune` without its memory estimate, for ranks of test_finetune."""

from ftkit.finetune import train

if __name__ == "__main__":
    train.estimate_run = lambda *_: None
    train.main()
