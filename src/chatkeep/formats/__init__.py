"""Conversations in the files of other systems, and how they get in and out of a store."""
