"""`python -m training.tracking BUNDLE`: log a bundle that was fitted while MLflow was down."""

import sys

from training.tracking.tracker import main

sys.exit(main())
