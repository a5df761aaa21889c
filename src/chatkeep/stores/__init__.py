"""One file per database, and what they share."""
