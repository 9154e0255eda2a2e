"""Fine-tuning methods compared on one model and one set of conversations.

`methods` lists the configurations and the grid of learning rates, `data` loads the conversations, `trial` makes one
run, `table` summarises the records, and `python -m ftcourse.studies.adapters` is the program.
"""
