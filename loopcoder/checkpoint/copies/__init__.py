"""Copies of checkpoints in an object store: sending them, and coming back from there.

copying -> sending                  while a run trains
early, then fetching (wanted)       a run whose folder is lost, or has fallen behind
lacking                             what is to be copied still, and what need not stay
owner                               whose copies a store has
stored, run_files, download         what is where, and how a file comes and goes
places                              a checkpoint that somebody names by its URL
"""
