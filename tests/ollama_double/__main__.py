"""Runs a double by hand: prints its address, ends when standard input ends."""

from __future__ import annotations

import argparse
import dataclasses
import sys

from tests.ollama_double.faults import Fault
from tests.ollama_double.models import default_models
from tests.ollama_double.server import OllamaDouble


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.ollama_double", description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--recorded", action="store_true", help="answer recorded requests byte for byte")
    parser.add_argument("--capacity-gb", type=float, default=1000.0)
    parser.add_argument("--load-s", type=float, default=0.0)
    parser.add_argument("--decode-tokens-per-s", type=float, default=1e5)
    parser.add_argument("--fault", choices=[fault.value for fault in Fault], help="every generation meets it")
    arguments = parser.parse_args()
    models = [
        dataclasses.replace(m, load_s=arguments.load_s, decode_tokens_per_s=arguments.decode_tokens_per_s)
        for m in default_models()
    ]
    double = OllamaDouble(models, capacity_gb=arguments.capacity_gb, recorded=arguments.recorded, port=arguments.port)
    with double:
        if arguments.fault:
            double.faults.set("*", Fault(arguments.fault))
        print(double.url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
