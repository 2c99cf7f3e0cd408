"""``python -m dicomtwist.archive.users NAME``: the former name of :mod:`dicomtwist.access.users`, for existing scripts."""

import sys

from dicomtwist.access.users import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
