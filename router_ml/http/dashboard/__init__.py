"""The page at `/`: what is being answered, by which model and why; hosts, alerts, experiment and bundle."""
