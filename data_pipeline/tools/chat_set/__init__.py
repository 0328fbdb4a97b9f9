"""Conversations made of documentation and of real signatures, for tuning without a hub."""
