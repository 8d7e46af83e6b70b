"""Formulas from papers, one function each: tensors in, tensors out.

Imports the modules beside the rooms.
"""
