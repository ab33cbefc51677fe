"""Position embeddings of an image of another size, and angles in place of them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32


def resize_positions(
  positions: Float[Array | np.ndarray, "old D"], tokens: int, first: int = 0, method: str = "bilinear"
) -> Float[Array, "new D"]:
  """Resizes a square grid of position embeddings: bilinear for CoCa, whose paper does not say how, bicubic for BLIP.

  Args:
    positions: [first + N, D]; the first ones, of a class token, stay as they are.
    tokens: of the new grid.
    first: how many come before the grid.
    method: 'bilinear', smoothed where the grid shrinks; 'bicubic', not smoothed, with Keys' a = -0.75 (as PyTorch's
      interpolate with align_corners=False, which BLIP calls).

  Returns:
    [first + tokens, D].
  """
  if len(positions) == first + tokens:
    return jnp.asarray(positions)
  old, new = math.isqrt(len(positions) - first), math.isqrt(tokens)
  grid = positions[first:].reshape(old, old, -1)
  if method == "bicubic":
    rows = _cubic_weights(old, new)
    grid = jnp.einsum("ih,jw,hwd->ijd", rows, rows, grid, precision="highest")
  else:
    grid = jax.image.resize(grid, (new, new, grid.shape[-1]), "bilinear")
  return jnp.concatenate([positions[:first], grid.reshape(tokens, -1)])


def rope_angles(side: int, grid: int, first: int, width: int) -> Float32[np.ndarray, "N half"]:
  """The angles by which two-dimensional RoPE turns the pairs of a patch's query and key.

  Half of the pairs turn with the column, half with the row, at frequencies of 1 down to nearly 1 / 10,000.

  Args:
    side: patches a side.
    grid: what columns and rows count to, however many there are.
    first: the first column and row; 1 where a class token, which is not turned, stands at 0.
    width: of a head.
  """
  frequencies = 10_000 ** -(np.arange(width // 4) / (width // 4))
  row, column = np.divmod(np.arange(side**2), side)
  places = (np.stack([column, row], axis=1) + first) * (grid / side)
  return (places[..., None] * frequencies).reshape(side**2, -1).astype(np.float32)


def _cubic_weights(old: int, new: int) -> np.ndarray:
  """[new, old]: what each old place adds to a new one; beyond the edges lies the edge's own value."""
  at = (np.arange(new)[:, None] + 0.5) * old / new - 0.5
  taps = np.floor(at).astype(int) + np.arange(-1, 3)
  x, a = np.abs(at - taps), -0.75
  weights = np.where(x < 1, (a + 2) * x**3 - (a + 3) * x**2 + 1, a * (x**3 - 5 * x**2 + 8 * x - 4))
  return (weights[..., None] * (np.clip(taps, 0, old - 1)[..., None] == np.arange(old))).sum(1).astype(np.float32)
