"""What a quantisation costs: bits a weight, and the ability that is lost, in doublings of parameters.

Sources: perplexity of Llama 2 70B under each quantisation, and of LLaMA 7B and 13B at 16 bits, as the documentation of
llama.cpp gives them (examples/perplexity/README.md, README.md). From 7B to 13B, .95 doublings, the log of the
perplexity falls by ln(5.9066 / 5.2543) = .117; a quantisation that raises it by x costs x / .123 doublings.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

_PER_DOUBLING = math.log(5.9066 / 5.2543) / math.log2(13.02 / 6.74)


class Quantisation(NamedTuple):
    """What is known of a quantisation."""

    bits: float  # a weight, on average
    loss: float  # ability lost, in doublings of parameters


# Size in bits a weight (from GiB of 69.0 billion weights), and the rise of perplexity.
_MEASURED = {
    "q2_k": (27.27, 0.0882), "q3_k_s": (27.86, 0.0789), "q3_k_m": (30.83, 0.0472), "q3_k_l": (33.67, 0.0380),
    "q4_0": (36.20, 0.0361), "q4_1": (40.20, 0.0237), "q4_k_s": (36.39, 0.0157), "q4_k_m": (38.54, 0.0120),
    "q5_0": (44.20, 0.0126), "q5_k_s": (44.20, 0.0050), "q5_k_m": (45.41, 0.0040), "q6_k": (52.70, 0.0016),
}  # fmt: skip
_BITS_OF_GIB = 2**30 * 8 / 68.98e9
_TABLE = {
    name: Quantisation(gib * _BITS_OF_GIB, math.log1p(rise) / _PER_DOUBLING) for name, (gib, rise) in _MEASURED.items()
} | {
    "q8_0": Quantisation(8.5, math.log(5.9070 / 5.9066) / _PER_DOUBLING),
    "mxfp4": Quantisation(4.25, 0.0),  # models in it were trained for it, and measured in it
}
_FULL = Quantisation(16.0, 0.0)
_BY_BITS = {1: Quantisation(1.9, 2.5), 2: _TABLE["q2_k"], 3: _TABLE["q3_k_m"], 4: _TABLE["q4_k_m"],
            5: _TABLE["q5_k_m"], 6: _TABLE["q6_k"], 8: _TABLE["q8_0"]}  # fmt: skip


def quantisation_of(name: str) -> Quantisation:
    """Return what is known of a quantisation by llama.cpp's name, such as `q4_K_M`; an unknown one counts by its bits,
    and as 16 bits where the name has none."""
    lowered = name.lower()
    digit = re.search(r"\d", lowered)
    return _TABLE.get(lowered) or (_BY_BITS.get(int(digit[0]), _FULL) if digit and "f" not in lowered else _FULL)
