"""The course beside the library: what its notebooks show, run and grade. Never imported by `ftkit`."""
