"""Indexes of the built-in benchmarks: hashes of word n-grams, no text. See README.md."""
