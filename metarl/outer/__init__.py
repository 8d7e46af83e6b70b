"""The step on the initialisation: the objective, its derivatives, trust region and Adam.

Imports `inner` and what is below it.
"""
