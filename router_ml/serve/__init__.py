"""One request through real models, with fallback: cache -> assign -> route -> call and fall back -> record.

from router_ml.serve.build import build_gateway
with build_gateway() as gateway:
    answer = gateway.chat([{"role": "user", "content": "find a free hour with Dana"}], tools=[...])
    answer.message.content, answer.model, answer.decision.reason, answer.attempts, answer.timings
"""

from router_ml.hosts.options import BreakerOptions, GatewayOptions
from router_ml.serve.answer import Answer, Attempt, Timings
from router_ml.serve.choose import Assigner, Decider
from router_ml.serve.gateway import Gateway
from router_ml.serve.stream import AnswerStream, AsyncAnswerStream

__all__ = [
    "Answer",
    "AnswerStream",
    "Assigner",
    "AsyncAnswerStream",
    "Attempt",
    "BreakerOptions",
    "Decider",
    "Gateway",
    "GatewayOptions",
    "Timings",
]
