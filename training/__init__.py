"""Learn bundles and measure models; never imported by serving."""

import sys
from importlib.util import find_spec

from router_ml import moved
from router_ml.terminal import report_interrupts

moved.install()

if sys.argv[:1] == ["-m"]:  # a command is starting, and its imports take seconds
    report_interrupts()

if find_spec("sklearn") is None:
    _message = "training needs more packages than serving; pip install 'router-ml[train]'"
    raise SystemExit(_message) if sys.argv[:1] == ["-m"] else ImportError(_message)
