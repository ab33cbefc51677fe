"""Meshes, processes and hosts: where arrays lie, and how they come there."""
