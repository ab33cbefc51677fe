"""Contrastive captioners (CoCa, arXiv 2205.01917) in JAX: train, bootstrap and use vision-language models."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from coca.inference import ContrastiveCaptioner

__all__ = ["load"]
__version__ = "0.3.0"  # setup.cfg reads it from here


def load(workdir, ema: bool | None = None) -> "ContrastiveCaptioner":
  """Opens a trained model; see `coca.inference.load`."""
  from coca import inference  # here, so that `import coca` does not import jax

  return inference.load(workdir, ema)
