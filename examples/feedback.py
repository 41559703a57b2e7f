"""Record what answers were worth, look at live figures, and export outcomes to learn from. Needs an Ollama server.

python examples/feedback.py
"""

import subprocess
import sys

from router_ml import RouterError, build_gateway, load_settings, open_watch

watch = open_watch(load_settings())
with build_gateway(watch=watch) as gateway:
    for query in ("check email", "book a table for four on Friday at 19:00"):
        try:
            answer = gateway.chat(query, context={"session_id": "demo"})
        except RouterError as error:
            raise SystemExit(f"no answer: {error}") from error
        gateway.feedback(answer.decision.decision_id, 1.0, comment="right")
        print(answer.model, f"{answer.timings.total_s:.2f} s")
    total = watch.metrics.snapshot().total
    print(f"{total.requests} requests, p50 {total.latency_p50_s:.2f} s")
watch.close()

command = [sys.executable, "-m", "router_ml", "events", "export", "--out", "outcomes.jsonl"]
subprocess.run(command, check=True)
