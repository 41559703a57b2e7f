"""A test double of an Ollama server: a real HTTP server with models that load, queue, get evicted and fail.

    with OllamaDouble(models=[DoubleModel("qwen3:8b", load_s=0.2)]) as double:
        client = ollama.Client(host=double.url)
        double.faults.set("qwen3:8b", Fault.ERROR_500)

Standard library only, so that any test may use it. `python -m tests.ollama_double` runs one by hand.
"""

from tests.ollama_double.faults import SERVER_FAULTS, Fault, Faults
from tests.ollama_double.memory import Loaded, Memory
from tests.ollama_double.models import DoubleModel, Reply, default_models
from tests.ollama_double.process import DoubleProcess
from tests.ollama_double.recorded import Recording, load_recordings
from tests.ollama_double.server import OllamaDouble, Seen

__all__ = [
    "SERVER_FAULTS",
    "DoubleModel",
    "DoubleProcess",
    "Fault",
    "Faults",
    "Loaded",
    "Memory",
    "OllamaDouble",
    "Recording",
    "Reply",
    "Seen",
    "default_models",
    "load_recordings",
]
