"""What each loop of a trained model does, and what it costs: the diagnostics of arXiv 2606.18023.

`capture` takes the tensors out of the model, `measures` has the definitions, `run` goes through the
data, `results` is what is written, `report` and `figures` show it, `recommend` reads it.
"""
