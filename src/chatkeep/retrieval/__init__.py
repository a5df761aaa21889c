"""Search in documents: terms and vectors, the index of a project, and the ranking."""
