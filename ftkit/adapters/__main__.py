"""python -m ftkit.adapters compare: see ftkit.studies.adapters.compare."""

import sys

from ftkit.studies.adapters.compare import main

if __name__ == "__main__":
    sys.exit(main())
