"""What training and the data pipeline share about disks: whole files, hashes, locks, full disks.

One mechanism each, and what processes need that are started on the way.
"""
