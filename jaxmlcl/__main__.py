"""`python -m jaxmlcl` is the command line."""

import sys

from jaxmlcl.cli import main

sys.exit(main())
