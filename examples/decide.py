"""Choose a model for a few queries, with context and policy. Needs no model host.

python examples/decide.py
"""

from router_ml import Policy, select_model

history = [
    {"role": "user", "content": "when is the meeting with Dana?"},
    {"role": "assistant", "content": "Thursday at 15:00, room 4."},
]

decision = select_model("move it to Friday", context={"history": history, "session_id": "s1"})
print(decision.model, decision.complexity, f"{decision.candidate.p_success:.2f}", decision.reason)

for candidate in decision.ranked:
    print(f"  {candidate.model:24} p_success {candidate.p_success:.2f}  p95 {candidate.latency_s.p95:.1f} s")

patient = Policy("patient", latency_weight_per_s=0.001, latency_budget_s=30.0)
print(select_model("compare the three offers and plan the move", policy=patient).model)
