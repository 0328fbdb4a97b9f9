"""Conversations as sequences of tokens."""
