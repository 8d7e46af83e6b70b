"""What adaptation gives: policies with `predict`, saved and loaded.

Imports `policies` and what is below it.
"""
