import pytest

from ftkit.finetune import train


@pytest.fixture(scope="module")
def no_estimates():
    """A run's memory is estimated, and held against the run, in test_memory; it takes longer than most runs here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "estimate_run", lambda *_: None)
        yield
