"""A fault drill: ranks of a fine-tune are killed at random points, and the run must end as if nothing had been.

make drill
"""
