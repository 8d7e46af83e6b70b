"""What training came to: adaptation curves with intervals, figures, films.

Imports `adapted`, `recurrent` and what is below them.
"""
