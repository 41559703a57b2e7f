"""One HTTP server that speaks Ollama's, OpenAI's and Anthropic's APIs, and routes requests for the model `auto`.

Needs the extra `server` (`pip install "router-ml[server]"`). Nothing but `router-ml serve` and `keys` imports it.
"""
