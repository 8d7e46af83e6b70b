"""The training loop, logging, saving and resuming.

Imports `adapted` and the rooms below it.
"""
