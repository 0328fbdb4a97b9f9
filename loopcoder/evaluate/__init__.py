"""What trained models can do: tasks of lm-eval, and programs that are run.

The loss on held-out documents, which `loopcoder evaluate` prints as well, is train/validation.py.
"""
