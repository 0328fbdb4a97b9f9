"""What training and the data pipeline share about disks: whole files, hashes, locks, full disks.

One mechanism each, and one for processes that must not outlive their parent.
"""
