"""Acting: a policy with its own parameters for every task, in all tasks and episodes at once.

Imports `policies`, `vector` and the rooms below them.
"""
