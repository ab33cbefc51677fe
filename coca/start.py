"""Starting a run from the parameters of another (`config.init_from`)."""

import math

import jax
from etils import epath

from coca.checkpoint import load_params
from coca.config import Config
from coca.forward import Forward, abstract_model
from coca.sharding import path_name
from coca.workdir import read_workdir


def initial_params(workdir, config: Config, mesh):
  """The parameters of the run in `workdir`, with image position embeddings resized to the new resolution.

  Returns:
    as `state["params"]` of `config`, on the mesh.

  Raises:
    FileNotFoundError: no run, or no checkpoint.
    ValueError: the models differ in more than the image size.
  """
  old, _ = read_workdir(workdir)
  source, target = Forward(old, mesh), Forward(config, mesh)
  there, here = _shapes(old), _shapes(config)
  differing = [f"  {name}: {there.get(name)} there, {here.get(name)} here" for name in sorted(there | here)
               if name != "image_encoder/positions" and there.get(name) != here.get(name)]
  if differing:
    raise ValueError(f"config.init_from={workdir} holds another model:\n" + "\n".join(differing[:8]))
  params = load_params(epath.Path(workdir) / "checkpoints", source.abstract_params)

  def resized(params):
    image = params["image_encoder"]
    image["positions"] = resize_positions(image["positions"], config.model.image.tokens)
    return params

  return jax.jit(resized, out_shardings=target.params_shardings)(params)


def resize_positions(positions, tokens: int):
  """Bilinear resizing of a square grid of position embeddings [N, D] to [tokens, D] (the paper does not say how)."""
  if len(positions) == tokens:
    return positions
  old, new = math.isqrt(len(positions)), math.isqrt(tokens)
  grid = positions.reshape(old, old, -1)
  return jax.image.resize(grid, (new, new, grid.shape[-1]), "bilinear").reshape(tokens, -1)


def _shapes(config: Config) -> dict:
  return {path_name(p): x.shape for p, x in jax.tree_util.tree_leaves_with_path(abstract_model(config)[1])}
