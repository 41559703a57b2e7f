"""`python -m router_ml`: the same as `router-ml`."""

import sys

from router_ml.cli import main

sys.exit(main())
