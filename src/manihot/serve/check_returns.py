"""A process that looks through a returns.zip, so that a hostile one can take neither the server's memory nor its time.

`python -m manihot.serve.check_returns ZIP FOLDER` unpacks it into FOLDER as `manihot scan` would, and prints one line
of JSON: how many photographs it holds and how many are broken, or what is wrong with it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from manihot.errors import ManihotError
from manihot.photos.returns import list_returns
from manihot.serve.decoder import limit_memory

MEMORY = 512 << 20  # bytes beyond what the libraries take


def main() -> None:
    """Look through the archive that is named."""
    limit_memory(MEMORY)
    try:
        found = list_returns(Path(sys.argv[1]), Path(sys.argv[2]))
    except ManihotError as error:
        print(json.dumps({"error": error.what.partition(": ")[2], "remedy": error.remedy}))
        return
    print(json.dumps({"photographs": len(found.entries), "broken": len(found.faults)}))


if __name__ == "__main__":
    main()
