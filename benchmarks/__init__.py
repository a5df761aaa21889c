"""The speed table of docs/design: every figure beside a yardstick that was measured in the same run.

`python -m benchmarks [NAME...] [--quick]`. A full run writes RESULTS.md; nothing in that file is written by hand.
"""
