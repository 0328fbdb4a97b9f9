"""What trained models can do: tasks of lm-eval, and programs that are run."""
