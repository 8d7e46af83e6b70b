"""Adapted policies: `predict`, saving and loading.

Imports `policies` and the rooms below it.
"""
