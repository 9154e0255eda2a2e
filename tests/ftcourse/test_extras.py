"""Without the `lab` extra, importing what needs it says how to install it."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("missing", "statement"),
    [
        ("ipywidgets", "import ftcourse.explorers.gradient_masks"),
        ("matplotlib", "import ftcourse.plots"),
        ("ipyparallel", "from ftcourse.live_ranks.live import start_ranks; start_ranks(1)"),
    ],
)
def test_what_is_missing_is_named_with_its_extra(missing, statement):
    code = f"import sys; sys.modules[{missing!r}] = None; {statement}"
    for name in ("ftcourse", "ipywidgets", "matplotlib", "ipyparallel"):  # a warm start has loaded some
        code = f"import sys; [sys.modules.pop(m) for m in [*sys.modules] if m.split('.')[0] == {name!r}]; {code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode and f"{missing} is not installed: pip install 'ftkit[lab]'" in done.stderr, done.stderr
