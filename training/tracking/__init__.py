"""Log every fit to MLflow."""

from training.tracking.tracker import Tracker, log_bundle, tracked

__all__ = ["Tracker", "log_bundle", "tracked"]
