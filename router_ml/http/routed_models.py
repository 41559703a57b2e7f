"""The router's own models, as clients see them: `auto`, and one for each policy."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from router_ml.catalogue import Catalogue
from router_ml.decide.selection.policy import PRESETS, Policy, resolve_policy
from router_ml.errors import PolicyError
from router_ml.http.problems import Problem

log = logging.getLogger(__name__)

AUTO = "auto"
_DEFAULT_WINDOW = 4096  # of a catalogue that says nothing
_FAMILY = "router_ml"


class FollowedPolicy:
    """A policy that is read anew when its file changes; one that cannot be used leaves the last good one in place."""

    def __init__(self, source: Policy | str | Path) -> None:
        """Read it. Raises `PolicyError` if it cannot be used."""
        self._source, self._good, self._refused = source, resolve_policy(source), ""

    def now(self) -> Policy:
        """Return the policy as it is now."""
        try:
            self._good, self._refused = resolve_policy(self._source), ""
        except PolicyError as error:
            if str(error) != self._refused:
                self._refused = str(error)
                log.warning("the changed policy is refused, the last good one stays: %s", error)
        return self._good


class RoutedModels:
    """Which names are routed, and under which policy."""

    def __init__(self, catalogue: Catalogue, default: Policy | str, files: Sequence[Path] = ()) -> None:
        """Read the policies. Raises `PolicyError` if a policy file cannot be used."""
        self._catalogue = catalogue
        self._files = {path.stem: FollowedPolicy(path) for path in files}
        self._default = FollowedPolicy(default)
        self._since = datetime.now(UTC)
        self._started = int(time.time())

    @property
    def policies(self) -> Mapping[str, Policy]:
        """The policies by name, as their files are now."""
        return {**PRESETS, **{name: policy.now() for name, policy in self._files.items()}}

    @property
    def default(self) -> Policy:
        """The policy of `auto`."""
        return self._default.now()

    @property
    def names(self) -> tuple[str, ...]:
        """The names, `auto` first."""
        return (AUTO, *(f"{AUTO}:{policy}" for policy in self.policies))

    def policy(self, model: object) -> Policy | None:
        """Return the policy that a model name stands for, or None if it names a model of a host.

        Raises `Problem` if it begins with `auto:` and no such policy exists."""
        if not isinstance(model, str):
            return None
        name, _, tag = model.strip().partition(":")
        if name != AUTO:
            return None
        return self.default if tag in ("", "latest") else self.named(tag)

    def named(self, policy: str) -> Policy:
        """Return a policy by its name; paths are refused. Raises `Problem` for a name that the server does not know."""
        found = self.policies.get(policy)
        if found is None:
            raise Problem("not_found", f"model '{AUTO}:{policy}' not found; there are {', '.join(self.names)}")
        return found

    @property
    def context_length(self) -> int:
        """Context length in tokens, the largest among the catalogue's models."""
        windows = [model.context_window_tokens for model in self._catalogue.models if model.context_window_tokens]
        return max(windows, default=_DEFAULT_WINDOW)

    @property
    def capabilities(self) -> list[str]:
        """Capabilities of at least one model of the catalogue; `vision` only if a model declares it."""
        models = self._catalogue.models
        able = [name for name in ("tools", "thinking") if any(model.can(name) for model in models)]
        sees = any(model.capabilities is not None and "vision" in model.capabilities for model in models)
        return ["completion", *able, *(["vision"] if sees else [])]

    def tag(self, name: str) -> dict[str, Any]:
        """Return the entry of `/api/tags`."""
        return {
            "name": name,
            "model": name,
            "modified_at": self._since.isoformat().replace("+00:00", "Z"),
            "size": 0,
            "digest": hashlib.sha256(name.encode()).hexdigest(),
            "details": {**self._details(), "context_length": self.context_length},
            "capabilities": self.capabilities,
        }

    def shown(self, name: str) -> dict[str, Any]:
        """Return the answer of `/api/show`."""
        return {
            "modelfile": f"# {name} is routed: each request goes to the model that suits it\nFROM {name}\n",
            "parameters": "",
            "template": "{{ .Prompt }}",
            "details": self._details(),
            "model_info": {"general.architecture": _FAMILY, f"{_FAMILY}.context_length": self.context_length},
            "capabilities": self.capabilities,
            "modified_at": self._since.isoformat().replace("+00:00", "Z"),
        }

    def openai(self, name: str) -> dict[str, Any]:
        """Return the entry of `/v1/models`."""
        return {"id": name, "object": "model", "created": self._started, "owned_by": _FAMILY}

    def _details(self) -> dict[str, Any]:
        return {
            "parent_model": "", "format": "gguf", "family": _FAMILY, "families": [_FAMILY], "parameter_size": "",
            "quantization_level": "",
        }  # fmt: skip
