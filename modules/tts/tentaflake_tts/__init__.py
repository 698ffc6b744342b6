"""A speech server that answers OpenAI's clients, with Piper's voices."""

import os

# Before onnxruntime is loaded: its wheels from PyPI else make an id for this machine, and report to their maker.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
