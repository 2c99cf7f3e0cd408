"""``python -m dicomtwist.tools``: the ``dicomtwist`` command for when its script is not on the path."""

from __future__ import annotations

from dicomtwist.tools import main

if __name__ == "__main__":
    main()
