"""One task's adaptation: its advantages, its loss, its step; roll out, step, repeat.

Imports `rollout` and what is below it.
"""
