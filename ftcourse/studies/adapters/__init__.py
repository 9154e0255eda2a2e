"""Methods of fine-tuning side by side, on one model and one set of conversations.

`rows` says what is compared, `trial` makes one run, `rates` finds each row's learning rate, `table` sums up, and
`compare` is the program, `python -m ftkit.adapters compare`.
"""
