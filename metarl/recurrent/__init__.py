"""Policies with a memory: trials of several episodes, sequences to train on, a critic that sees the task.

Imports `rollout` and the rooms below it.
"""
