"""Learn which of two models to ask from outcomes, and decide with the new bundle. Needs pip install '.[all]'.

The outcomes are made up: "small" answers short requests, "large" answers everything at five times the latency.

python examples/learn.py
"""

import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from router_ml import Policy, Router
from router_ml.jsonl import write_rows

random.seed(1)
folder = Path(tempfile.mkdtemp())
queries, outcomes = [], []
for number in range(400):
    hard = number % 2 == 1
    text = f"compare {number} offers and plan the move" if hard else f"set a timer for {number} minutes"
    queries.append({"id": f"q{number}", "text": text, "context": None, "label": None})
    for model, chance, latency_s in (("small", 0.3 if hard else 0.95, 2.0), ("large", 0.95, 10.0)):
        success = float(random.random() < chance)
        outcomes.append({"query_id": f"q{number}", "model": model, "success": success, "latency_s": latency_s})
write_rows(folder / "queries.jsonl", queries)
write_rows(folder / "outcomes.jsonl", outcomes)

command = [sys.executable, "-m", "training.fit", "--models-dir", str(folder / "models"), "--json"]
command += ["--queries", str(folder / "queries.jsonl"), "--outcomes", str(folder / "outcomes.jsonl")]
fitted = subprocess.run(command, check=True, capture_output=True, text=True)
bundle = json.loads(fitted.stdout.splitlines()[-1])["bundle"]

router = Router.load(bundle)
for query in ("set a timer for 7 minutes", "compare 9 offers and plan the move"):
    decision = router.decide(query, policy=Policy("no limit", latency_budget_s=None))
    print(f"{query!r} -> {decision.model}, p_success {decision.candidate.p_success:.2f}")
