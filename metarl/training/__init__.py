"""Repeat, log, save, resume.

Imports `adapted` and what is below it.
"""
