"""router-ml serve: one address that any client can be pointed at."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from router_ml.errors import SettingsError
from router_ml.settings import load_settings

DESCRIPTION = """Serves Ollama's, OpenAI's and Anthropic's APIs on one address. Requests for the model `auto` go to the
model that suits each of them (`auto:fast`, `auto:accurate` under another policy); a model of its own name is called
as it is."""

EPILOG = """point your client at it (the examples take the default address):
  ollama        OLLAMA_HOST=127.0.0.1:11435 ollama run auto
  Open WebUI    OLLAMA_BASE_URL=http://127.0.0.1:11435, then choose the model auto
  Continue      config.yaml:  models: [{name: auto, provider: ollama, model: auto, apiBase: "http://127.0.0.1:11435"}]
  Cline         API provider "Ollama", base URL http://127.0.0.1:11435, model auto
  Claude Code   ANTHROPIC_BASE_URL=http://127.0.0.1:11435 ANTHROPIC_AUTH_TOKEN=none ANTHROPIC_MODEL=auto
                ANTHROPIC_DEFAULT_HAIKU_MODEL=auto:fast claude
  Codex         ~/.codex/config.toml:  model = "auto"  model_provider = "router"
                [model_providers.router]  base_url = "http://127.0.0.1:11435/v1"  wire_api = "responses"
  LangChain     ChatOllama(model="auto", base_url="http://127.0.0.1:11435")
                ChatOpenAI(model="auto", base_url="http://127.0.0.1:11435/v1", api_key="none")

every answer says in its headers (x-router-ml-model, -decision-id, -reason ...) who gave it and why;
request headers x-router-ml-policy, -budget-s, -session and -user change how it is chosen.
A request over the network needs a key: router-ml keys add NAME
"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    verb = subparsers.add_parser(
        "serve",
        help="serve Ollama's, OpenAI's and Anthropic's APIs on one address",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    verb.add_argument("--port", type=int, default=11435, help="port to listen on (11435)")
    verb.add_argument("--ollama", nargs="+", default=[], metavar="URL", help="model hosts (OLLAMA_HOST)")
    verb.add_argument("--policy-file", nargs="+", type=Path, default=[], metavar="FILE",
                      help="policy files; each becomes a model auto:NAME")  # fmt: skip
    verb.add_argument("--allow-host", action="append", default=[], metavar="NAME", help="a further name of this server")
    verb.add_argument("--allow-origin", action="append", default=[], metavar="ORIGIN",
                      help="a web page's origin that may call, such as https://chat.example")  # fmt: skip
    verb.add_argument(
        "--allow-path", action="append", default=[], metavar="PATH", help="a further path that passes through"
    )
    verb.add_argument("--manage-models", action="store_true", help="let pull, push, create, copy and delete pass")
    verb.add_argument("--keys", type=Path, metavar="FILE", help="API keys (keys.json in the state folder)")
    verb.add_argument("--require-keys", action="store_true", help="ask for an API key on the loopback interface, too")
    verb.add_argument("--max-requests", type=int, default=256, help="requests served at once; more are refused (256)")
    verb.add_argument("--stop-s", type=float, default=30.0, help="seconds running answers have at a stop (30)")
    verb.add_argument("--log-level", default="INFO", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
    verb.set_defaults(func=_serve)


def _serve(options: argparse.Namespace) -> int:
    try:
        from router_ml.http.server import run
    except ModuleNotFoundError as error:
        raise SettingsError(f'{error.name} is missing; run: pip install "router-ml[server]"') from error
    from router_ml.http.options import ServerOptions

    server = ServerOptions(
        host=options.host,
        port=options.port,
        hosts=tuple(options.ollama),
        allow_hosts=tuple(options.allow_host),
        allow_origins=tuple(options.allow_origin),
        allow_paths=tuple(options.allow_path),
        manage_models=options.manage_models,
        policy_files=tuple(options.policy_file),
        keys_file=options.keys,
        require_keys=options.require_keys,
        max_requests=options.max_requests,
        stop_s=options.stop_s,
    )
    logging.getLogger("router_ml").setLevel(options.log_level)
    return run(load_settings(), server)
