"""Low-rank adaptation (LoRA, arXiv 2106.09685): a matrix moves by alpha / rank times a product of two narrow ones.

It is a rule for updates here and nothing of the model: the narrow matrices are in the optimizer's state, their
gradients are the chain rule's, from the whole matrix' gradient, and what their step changes in their product is added
to the matrix. So parameters are those of any other run at every step, merged already: checkpoints, averages,
evaluators, exports and coca.load take them as they are. Moments are of the narrow matrices alone. The gradient of an
adapted matrix is whole for a moment, which adapters within the model would not need.
"""

import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from coca.config import Config
from coca.config.settings import frozen_parts
from coca.devices.trees import flat, nested, path_name

KERNEL, A, B = "/kernel", "/lora_a/kernel", "/lora_b/kernel"


class LoraState(NamedTuple):
  matrices: dict  # nested, by path: lora_a [..., in, rank] and lora_b [..., rank, out] in the place of each kernel
  optimizer: optax.OptState


def is_adapted(config: Config, path: str) -> bool:
  """True for a matrix that moves by a product."""
  lora, names = config.optim.lora, path.split("/")
  return lora.rank > 0 and names[0] not in lora.whole and names[-1] == "kernel" and names[-2] in lora.layers


def is_frozen(config: Config, path: str) -> bool:
  """True for a parameter that no step moves: of a part whose rate is 0, or one that LoRA leaves alone."""
  part = path.split("/")[0]
  if part in frozen_parts(config):
    return True
  return config.optim.lora.rank > 0 and part not in config.optim.lora.whole and not is_adapted(config, path)


def stop_frozen(config: Config, params):
  """The parameters, without gradients of those that are frozen: what they would cost is not computed."""

  def stopped(path, x):
    return jax.lax.stop_gradient(x) if is_frozen(config, path_name(path)) else x

  return jax.tree_util.tree_map_with_path(stopped, params)


def check(config: Config, params) -> None:
  """Raises ValueError: a part or a layer that the model lacks, or a rank that is no less than a matrix'."""
  lora, leaves = config.optim.lora, flat(params)
  if unknown := set(lora.whole) - set(params):
    raise ValueError(
      f"config.optim.lora.whole names {', '.join(sorted(unknown))}; the model's parts are {', '.join(params)}"
    )
  adapted = {path: x.shape for path, x in leaves.items() if is_adapted(config, path)}
  if not adapted:
    raise ValueError(f"config.optim.lora.layers: no part that is not whole has one of {', '.join(lora.layers)}")
  for path, shape in adapted.items():
    if min(shape[-2:]) <= lora.rank:
      raise ValueError(f"config.optim.lora.rank {lora.rank} is no less than that of {path}, {list(shape)}")


def in_place(config: Config, params, of) -> dict:
  """`params` with what `of(path, matrix)` gives, a pair, in the place of each adapted matrix."""
  leaves: dict[str, Any] = {}
  for path, x in flat(params).items():
    if is_adapted(config, path):
      leaves[path.removesuffix(KERNEL) + A], leaves[path.removesuffix(KERNEL) + B] = of(path, x)
    else:
      leaves[path] = x
  return nested(leaves)


def new_matrices(config: Config, params) -> dict:
  """`params` with the narrow matrices of a new run: lora_a as the authors' code (loralib) draws it, lora_b zeros.

  loralib's lora_a is uniform within 1 / sqrt(in); the paper says that it is Gaussian, and not how wide.
  """
  rank, key = config.optim.lora.rank, jax.random.key(config.seed)

  def of(path, x):
    own, bound = jax.random.fold_in(key, zlib.crc32(path.encode()) & 0x7FFFFFFF), x.shape[-2] ** -0.5
    a = jax.random.uniform(own, (*x.shape[:-1], rank), jnp.float32, -bound, bound)
    return a, jnp.zeros((*x.shape[:-2], rank, x.shape[-1]), jnp.float32)

  return in_place(config, params, of)


def _product(a, b):
  return jnp.matmul(a, b, precision="highest")  # TPUs would multiply in bfloat16


def with_lora(
  config: Config, optimizer: optax.GradientTransformationExtraArgs
) -> optax.GradientTransformationExtraArgs:
  """`optimizer`, which is of the tree with narrow matrices (`in_place`), for the model's own parameters."""
  scale = (config.optim.lora.alpha or config.optim.lora.rank) / config.optim.lora.rank

  def init(params):
    whole = new_matrices(config, params)
    kept = nested({path: x for path, x in flat(whole).items() if path.endswith((A, B))})
    return LoraState(kept, optimizer.init(whole))

  def update(updates, state, params=None, *, finite=True, **more):
    old, gradients = flat(state.matrices), flat(updates)

    def pair(path, _):
      stem = path.removesuffix(KERNEL)
      return old[stem + A], old[stem + B]

    def pulled(path, gradient):
      a, b = pair(path, gradient)
      return scale * _product(gradient, b.mT), scale * _product(a.mT, gradient)

    narrow = in_place(config, updates, pulled)
    narrow, inner = optimizer.update(narrow, state.optimizer, in_place(config, params, pair), finite=finite, **more)
    step = flat(narrow)
    new = {path: jnp.where(finite, x + step[path], x) for path, x in old.items()}

    def moved(path):
      """The product's change, (a + da)(b + db) - ab, without the difference of two large numbers."""
      (a, _), stem = pair(path, None), path.removesuffix(KERNEL)
      return scale * (_product(step[stem + A], new[stem + B]) + _product(a, step[stem + B]))

    out = {path: moved(path) if is_adapted(config, path) else step[path] for path in gradients}
    return nested(out), LoraState(nested(new), inner)

  return optax.GradientTransformationExtraArgs(init, update)
