"""Modules of the model. They know nothing of meshes; the sharding of their parameters is in `coca/sharding.py`."""
