"""Trees of parameters as flat dicts: {'unimodal/norm/scale': ...}."""

import jax


def flat(tree) -> dict:
  """Leaves by their paths."""
  return {path_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def nested(leaves: dict) -> dict:
  """Nested dicts of what `flat` returns."""
  out = {}
  for name, x in leaves.items():
    *parents, last = (int(key) if key.isdecimal() else key for key in name.split("/"))  # nnx' lists have numbers
    node = out
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = x
  return out


def path_name(path) -> str:
  """A key path of jax.tree_util as text: 'unimodal/stack/layers/mlp/up/kernel'."""
  if path and path[-1] == jax.tree_util.GetAttrKey("value"):  # inside a variable of nnx
    path = path[:-1]
  return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)
