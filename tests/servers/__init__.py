"""The servers that the tests start: databases, poolers, and chatkeep itself."""
