"""How files become documents: what they are, their text, and its passages."""
