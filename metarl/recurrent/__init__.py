"""Policies that remember: trials of several episodes, the sequences to train on, critics that see the task.

Imports `rollout` and what is below it.
"""
