"""Learn to read complexity: corpus vectors, encoder tuning, head, export."""
