"""One formula of a paper each: tensors in, tensors out.

Imports the modules beside the rooms.
"""
