"""Everything that learns and measures; heavy, and never imported by serving."""

from importlib.util import find_spec

if find_spec("sklearn") is None or find_spec("joblib") is None:
    raise ImportError("training needs more packages than serving; pip install 'router-ml[train]'")
