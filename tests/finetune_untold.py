"""`python -m ftkit.finetune` without telling its memory in advance, for ranks of test_finetune."""

from ftkit import finetune

if __name__ == "__main__":
    finetune.tell_memory = lambda *_: None
    finetune.main()
