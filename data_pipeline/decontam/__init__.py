"""Documents that repeat a benchmark, found by n-grams. The .npz are hashes, no text: README.md."""
