"""One request through real models, whatever breaks: cache -> assign -> route -> call and fall back -> record.

from router_ml.wiring import build_gateway
with build_gateway() as gateway:
    answer = gateway.chat([{"role": "user", "content": "find a free hour with Dana"}], tools=[...])
    answer.message.content, answer.model, answer.decision.reason, answer.attempts, answer.timings
"""

from router_ml.backends.answer import Answer, Attempt, Timings
from router_ml.backends.options import BreakerOptions, GatewayOptions
from router_ml.backends.stream import AnswerStream, AsyncAnswerStream
from router_ml.gateway.chooser import Assigner, Decider
from router_ml.gateway.gateway import Gateway

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
