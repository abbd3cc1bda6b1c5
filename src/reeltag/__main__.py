"""`python -m reeltag`, and torchrun's way to start the command line."""

import sys

from reeltag.cli.main import main

sys.exit(main())
