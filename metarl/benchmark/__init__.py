"""Every way to act in environments that vary, under one protocol: contenders, budgets, frozen tasks, results.

Imports anything but the command line.
"""
