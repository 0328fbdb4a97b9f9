"""Side commands that no build runs: train the classifier of languages, audit its labels."""
