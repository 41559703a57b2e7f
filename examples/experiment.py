"""Start an experiment of the `fast` policy against the current one, and show its state.

python examples/experiment.py
"""

import subprocess
import sys


def router_ml(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "router_ml", *arguments], check=True)


router_ml("experiment", "start", "faster", "--challenger-policy", "fast", "--ramp", "0:0.05,1h:0.25,1d:1")
router_ml("experiment", "status")
router_ml("experiment", "stop")
