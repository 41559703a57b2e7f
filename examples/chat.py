"""Answer through the gateway, whole and streamed, with a tool. Needs an Ollama server (OLLAMA_HOST).

python examples/chat.py
"""

from router_ml import RouterError, build_gateway


def get_weather(city: str) -> str:
    """Return the weather of a city.

    Args:
        city: name of the city
    """
    return f"sunny in {city}"


with build_gateway() as gateway:
    try:
        answer = gateway.chat("what is the weather in Oslo?", tools=[get_weather])
    except RouterError as error:  # every failure is typed and says what to do
        raise SystemExit(f"no answer: {error}") from error
    print(answer.model, "because", answer.decision.reason)
    print(answer.content or answer.message.tool_calls)

    for part in gateway.chat([{"role": "user", "content": "tell me a short story"}], stream=True):
        print(part.message.content, end="", flush=True)
    print()
