"""The files of code that an export gets a copy of; they need torch and transformers only."""
