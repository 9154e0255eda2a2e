"""python -m ftkit.finetune: see train.py."""

import gc

gc.disable()  # imports make a million objects that stay: searching them for garbage takes a tenth of the start

from .train import main  # noqa: E402

gc.freeze()
gc.enable()

if __name__ == "__main__":
    main()
