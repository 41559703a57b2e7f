"""`python -m router_ml.cli`, for where the script is not on the path."""

import sys

from router_ml.cli import main

sys.exit(main())
