"""How fast a model answers: on a reference machine, or at rates measured on this one."""

from __future__ import annotations

from dataclasses import dataclass

from router_ml.library.quantisation import quantisation_of

# The reference machine is a desktop with one graphics card of the middle class that holds the model whole: it reads
# weights at 210 GB/s (60 % of the 360 GB/s of such a card) and computes 20e12 operations a second on prompts. On it a
# model of 3.2 billion parameters in 4 bits generates 110 tokens/s, one of 8 billion 43.
BYTES_PER_S = 210e9
OPERATIONS_PER_S = 20e12
LOAD_BYTES_PER_S = 1.5e9  # from disk into the card
ASSUMED_PROMPT_TOKENS = 1000.0  # of an assistant's request: system prompt, a few tools, the query
ASSUMED_OVERHEAD_S = 0.8  # of a call beside prompt and generation: the assistant, the tools' schemas, the network
MEASURED_OVERHEAD_S = 0.1  # beside rates that were measured here


@dataclass(frozen=True, slots=True)
class Rates:
    """What a model's speed follows from."""

    decode_tokens_per_s: float
    prompt_tokens_per_s: float
    load_s: float
    overhead_s: float

    def answer_s(self, output_tokens: float, prompt_tokens: float = ASSUMED_PROMPT_TOKENS) -> float:
        """Return the seconds of an answer of a model that is loaded."""
        return self.overhead_s + prompt_tokens / self.prompt_tokens_per_s + output_tokens / self.decode_tokens_per_s


def gigabytes(parameters_b: float, quantisation: str) -> float:
    """Return the size of so many billions of weights in GB (1e9 bytes)."""
    return parameters_b * quantisation_of(quantisation).bits / 8


def reference_rates(parameters_b: float, active_b: float, quantisation: str) -> Rates:
    """Return the rates of the reference machine: each token reads the active weights once, each token of the prompt
    costs two operations a weight, and a load reads the whole file."""
    return Rates(
        decode_tokens_per_s=BYTES_PER_S / (gigabytes(active_b, quantisation) * 1e9),
        prompt_tokens_per_s=OPERATIONS_PER_S / (2e9 * active_b),
        load_s=gigabytes(parameters_b, quantisation) * 1e9 / LOAD_BYTES_PER_S,
        overhead_s=ASSUMED_OVERHEAD_S,
    )
