"""The programming language of a document: from names and first lines, or by a classifier."""
