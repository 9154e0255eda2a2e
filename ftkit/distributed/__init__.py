"""Techniques for several ranks, one a file. A technique knows no optimizer, adapter or data format."""
