"""SPEAK: the models' hosts, what is known of them right now, and one call at a time."""
