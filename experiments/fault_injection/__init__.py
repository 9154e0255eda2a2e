"""Fault injection: ranks of a fine-tune are killed at random points; the run must recover bitwise identical."""
