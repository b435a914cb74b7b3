"""The floor under every daemon: units, errors, configuration, lifecycle, clocks, logs, metrics, media decoding.

Nothing here imports torch, and nothing here knows what a voice is.
"""
