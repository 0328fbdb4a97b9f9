"""Conversations: their rows, their templates, and which of their text a model is to learn."""
