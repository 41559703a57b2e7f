"""Names of models: what Ollama calls them, what the catalogue calls them."""

from __future__ import annotations

from router_ml.catalogue import Catalogue

_LIBRARY = ("registry.ollama.ai/library/", "registry.ollama.ai/", "library/")


def normal(name: str) -> str:
    """Return the name without the default registry, without the tag `:latest`, in lower case."""
    lowered = name.strip().lower()
    for prefix in _LIBRARY:
        lowered = lowered.removeprefix(prefix)
    return lowered.removesuffix(":latest")


class ModelNames:
    """Find the catalogue's name of a model under any of its names."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.use(catalogue)

    def use(self, catalogue: Catalogue) -> None:
        """Read the names of another catalogue from now on."""
        canonical: dict[str, str] = {}
        for model in catalogue.models:
            for name in (model.name, *model.aliases):
                canonical.setdefault(normal(name), model.name)
        self._canonical = canonical

    def canonical(self, name: str) -> str:
        """Return the catalogue's name, or the name itself, normalised, where the catalogue does not know it."""
        bare = normal(name)
        return self._canonical.get(bare, bare)

    def same(self, one: str, other: str) -> bool:
        """Return whether two names mean the same model."""
        return self.canonical(one) == self.canonical(other)
