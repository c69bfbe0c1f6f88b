"""`python -m inference` is the command `ppl`."""

import sys

from inference.cli import main

sys.exit(main())
