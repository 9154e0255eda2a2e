"""One command for a first GPU: `make gpu` measures all that needs one, in eight minutes, and writes a report."""
