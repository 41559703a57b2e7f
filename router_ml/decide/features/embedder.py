"""Re-exports the seam of the encoders, which rules read, too."""

from router_ml.decide.embedder import Embedder as Embedder
from router_ml.decide.embedder import Floats as Floats
from router_ml.decide.embedder import is_failure as is_failure
