"""Image-text retrieval: recall at 1, 5 and 10 in both directions, as in CLIP, CoCa (section 4.2.2) and BLIP.

A query counts if any of its right answers is among the first K. Right answers of a picture are its own texts and every
text equal to one of them, whoever it belongs to; right answers of a text are all pictures that own an equal text. Texts
are equal if their token ids are: that is as far as the model can tell. Ties count against the model
(`coca.evals.ranking.ranks`). Numbers are shares between 0 and 1.
"""

from collections.abc import Iterator

import numpy as np
from absl import logging

from coca.config import Config, Eval
from coca.evals.ranking import BLOCK, ranks, recall
from coca.evals.stream import Stream
from coca.host import Lagged

DEPTHS = (1, 5, 10)


class Retrieval:
  """Embeds every picture and up to `settings.texts_per_image` texts of each, and ranks them against each other.

  Args:
    config: the run's settings.
    settings: the evaluator's: source, batch, limit, texts_per_image.
    forward: compiled functions (`coca.forward.Forward`).
    tokenizer: `coca.data.tokenizer.Tokenizer`.
    source: pictures and their texts.
  """

  def __init__(self, config: Config, settings: Eval, forward, tokenizer, source):
    self.stream = Stream(config, settings, forward, tokenizer, source)

  def run(self, params) -> Iterator[tuple[str, float]]:
    """Yields 'i2t_r1' ... 't2i_r10' and 'examples', the number of pictures."""
    images, keep, texts, owners = Lagged(), [], [], []
    for batch in self.stream:
      images.append(self.stream.forward.embed_images(params, batch.device["image"]))
      offset = len(keep) * self.stream.batch
      keep.append(batch.rows["weight"] > 0)
      row, slot = np.nonzero((batch.rows["text_weight"] > 0) & keep[-1][:, None])
      texts.append(batch.rows["text"][row, slot])
      owners.append(row + offset)
    keep = np.concatenate(keep)
    images = images.concatenate()[keep]
    if not sum(map(len, owners)):
      logging.warning("retrieval: no record of %s has both a picture and a text", self.stream.source.name)
      return
    ids, owners = np.concatenate(texts), (np.cumsum(keep) - 1)[np.concatenate(owners)]
    yield from recalls(images, self.stream.embed_texts(params, ids), ids, owners)
    yield "examples", float(len(images))


def recalls(images: np.ndarray, texts: np.ndarray, ids: np.ndarray, owners: np.ndarray,
            block: int = BLOCK) -> Iterator[tuple[str, float]]:
  """Recalls of embeddings.

  Args:
    images: [N, E], unit length.
    texts: [M, E], unit length.
    ids: [M, L], what makes texts equal.
    owners: [M], the image that each text belongs to, ascending.
    block: queries at a time.

  Yields:
    'i2t_r1', 'i2t_r5', 'i2t_r10', 't2i_r1', ... with shares. Pictures without texts are only candidates.
  """
  _, kind = np.unique(ids, axis=0, return_inverse=True)  # equal texts have the same kind
  kind = kind.reshape(-1)
  counts = np.bincount(owners, minlength=len(images))
  slot = np.arange(len(owners)) - (np.cumsum(counts) - counts)[owners]
  kinds = np.full((len(images), max(counts.max(initial=0), 1)), -1)
  kinds[owners, slot] = kind

  def right_texts(start, stop):
    return np.logical_or.reduce([kinds[start:stop, k, None] == kind for k in range(kinds.shape[1])])

  def right_images(start, stop):
    return np.logical_or.reduce([kind[start:stop, None] == kinds[:, k] for k in range(kinds.shape[1])])

  image_ranks = ranks(images, texts, right_texts, block)[counts > 0]
  text_ranks = ranks(texts, images, right_images, block)
  for name, rank in (("i2t", image_ranks), ("t2i", text_ranks)):
    for k in DEPTHS:
      yield f"{name}_r{k}", recall(rank, k)
