"""Learning from one's own traffic: rows from events, a gate, and the steps from a fit to an experiment."""
