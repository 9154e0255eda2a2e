"""The pages that are too long for the README, and the programs that draw their picture and make the book."""
