"""`python -m loopcoder` is the command `loopcoder`."""

import sys

from loopcoder.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
