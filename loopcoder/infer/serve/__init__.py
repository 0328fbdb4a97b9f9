"""A small server of OpenAI's API: completions and chat on one engine in one process."""
