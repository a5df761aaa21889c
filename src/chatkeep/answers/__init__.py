"""Answers to questions: a turn from its beginning to its end, and what an answer is made by."""
