"""Policies: networks as descriptions, parameters as data; what they observe and how they act.

Imports `formulas`.
"""
