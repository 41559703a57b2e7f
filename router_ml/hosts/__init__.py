"""Model hosts: what is installed and loaded, how fast, how busy and how healthy each one is."""
