"""K*E environments as one `gymnasium.vector.VectorEnv`, by several backends; `worker` needs no torch.

Imports the modules beside the rooms.
"""
