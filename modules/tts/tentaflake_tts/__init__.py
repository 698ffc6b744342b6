"""A speech server that answers OpenAI's clients, with Piper's voices."""
