"""Retrieval from embeddings that are there already, of this model or of another program."""

import zipfile
from collections.abc import Iterator

import numpy as np

from coca.evals.retrieval import recalls
from coca.files import reading


def retrieval(images, texts, owners=None, equal_texts: bool = False) -> Iterator[tuple[str, float]]:
  """Recalls at 1, 5 and 10 in both directions, as a retrieval evaluator tells them.

  Args:
    images: NumPy file of N embeddings, one a row.
    texts: of M embeddings; with `owners` left out, those of an image stand together, as many for each.
    owners: of M integers, the image that each text belongs to, from 0.
    equal_texts: as `config.evals.NAME.equal_texts`; texts of one embedding are equal.

  Raises:
    FileNotFoundError, ValueError: a file that is not there or holds something else; the message names it.
  """
  a, b = _unit(images), _unit(texts)
  if a.shape[1] != b.shape[1]:
    raise ValueError(f"{images} has embeddings of {a.shape[1]} numbers and {texts} of {b.shape[1]}; they have to agree")
  if owners is None:
    if len(b) % len(a):
      raise ValueError(
        f"{texts} has {len(b)} rows for {len(a)} images, no whole number for each: name a file with the image of each, "
        "--owners"
      )
    own = np.arange(len(b)) // (len(b) // len(a))
  else:
    own = _array(owners).reshape(-1)
    if len(own) != len(b) or own.dtype.kind not in "iu" or own.min() < 0 or own.max() >= len(a):
      raise ValueError(f"{owners} has to hold {len(b)} integers from 0 to {len(a) - 1}: the image of each text")
  order = np.argsort(own, kind="stable")
  _, kind = np.unique(b, axis=0, return_inverse=True)
  yield from recalls(a, b[order], kind.reshape(-1)[order], own[order], equal_texts)
  yield "examples", float(len(a))


def _array(path) -> np.ndarray:
  file = reading.one(path)
  try:
    array = np.load(reading.RangeFile(file), allow_pickle=False)
  except (ValueError, EOFError, zipfile.BadZipFile) as e:
    raise ValueError(f"{path} is no NumPy file (.npy): {e}") from None
  if not isinstance(array, np.ndarray):
    raise ValueError(f"{path} is an archive of arrays (.npz): it has to be a single one (.npy)")
  return array


def _unit(path) -> np.ndarray:
  array = _array(path)
  if array.ndim != 2 or not len(array) or array.dtype.kind != "f":
    raise ValueError(f"{path} has to hold floats [N, E], an embedding a row")
  array = array.astype(np.float32)
  return array / np.maximum(np.linalg.norm(array, axis=1, keepdims=True), 1e-12)
