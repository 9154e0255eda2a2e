"""The tests, laid out as the packages they test. `ROOT` is the checkout."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
