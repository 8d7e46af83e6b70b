"""Sources of tasks: families by name, from Gymnasium environments, with visible tasks; `check_family`.

Imports `policies` and `vector`.
"""
