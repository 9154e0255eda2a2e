"""python -m ftkit.finetune: see train.py."""

import atexit
import gc

gc.disable()  # imports make a million objects that stay: searching them for garbage takes a tenth of the start

from .train import main  # noqa: E402

gc.freeze()
atexit.register(gc.unfreeze)  # libraries of compiled code report what is never collected as leaked
gc.enable()

if __name__ == "__main__":
    main()
