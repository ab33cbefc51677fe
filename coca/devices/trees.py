"""Trees of parameters as flat dicts: {'unimodal/norm/scale': ...}."""

import jax

from coca.devices.sharding import path_name


def flat(tree) -> dict:
  """Leaves by their paths."""
  return {path_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def nested(leaves: dict) -> dict:
  """Nested dicts of what `flat` returns."""
  out = {}
  for name, x in leaves.items():
    *parents, last = name.split("/")
    node = out
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = x
  return out
