"""How a version is released, and what the wheel says about the project. Not installed."""
