"""Walking robots in MuJoCo: Gymnasium's own environments, whose goal or whose body is the task."""
