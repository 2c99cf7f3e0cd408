"""``python -m dicomtwist.archive.users NAME``: the earlier name of :mod:`dicomtwist.access.users`, kept for scripts."""

import sys

from dicomtwist.access.users import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
