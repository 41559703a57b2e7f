"""Where heavy work runs: the processes of this machine, or the actors of a Ray cluster."""
