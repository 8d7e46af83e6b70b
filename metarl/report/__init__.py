"""Results of training: adaptation curves with intervals, figures, videos.

Imports `adapted`, `recurrent` and the rooms below them.
"""
