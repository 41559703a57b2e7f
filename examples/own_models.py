"""Route between your own models, described by a catalogue file.

python examples/own_models.py
"""

from pathlib import Path

from router_ml import Router, load_catalogue

catalogue = load_catalogue(Path(__file__).with_name("own_models.toml"))
router = Router.load(catalogue=catalogue)

for query in ("turn off the kitchen lights", "when the parcel arrives, text Omar and move the dentist"):
    decision = router.decide(query, policy="accurate")
    print(f"{query!r} -> {decision.model}: {decision.reason}")
