"""What a machine needs before a run starts on it: checks with their time limits, and what several
nodes of a job find of each other.

`node` lists the checks of one machine, `timed` runs each in a process of its own, `probe` is what
one process per GPU measures, and `compare` says what differs between nodes. Every number that
something is held against stands in `thresholds`.
"""
