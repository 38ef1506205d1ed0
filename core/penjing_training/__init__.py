"""Training: what the techniques that train have in common. A library, not a plugin."""
