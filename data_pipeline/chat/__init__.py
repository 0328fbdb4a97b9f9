"""Corpora of conversations: read, rendered by a chat template, and packed into whole sequences."""
