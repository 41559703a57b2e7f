"""From a query and its context to a decision: pure, no network, no clock, no files after loading."""
