"""Choose among the candidates under a policy."""
