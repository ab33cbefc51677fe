"""The decoder's skill at writing: the loss of the true captions, and its own captions beside them.

Where the truth of the images is known (scenes: coca/data/sources/scenes.py), captions are judged by it, too.
"""

import functools
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from coca.config import Config, Eval
from coca.config.special import Tokenizer
from coca.data import texts
from coca.data.pipeline import Wants
from coca.data.records import BadRecord, Records
from coca.data.scenes.judge import judge
from coca.data.sources.scenes import SceneSource
from coca.devices.host import to_host
from coca.evals.evaluator import Evaluator
from coca.evals.judged import judged
from coca.evals.pixels import SOME, nearest
from coca.evals.stream import Stream, own_texts
from coca.files.threads import read_ahead
from coca.inference.forward import Forward

PIXEL = (
  "pixel_exact_match",
  "pixel_bleu1",
  "pixel_true",
  "pixel_right_parts",
)  # of the baseline; the last two of scenes


class Captions(Evaluator):
  """Loss per token of each record's first text, and a caption for every image.

  Args:
    config, forward, tokenizer: see `Evaluator`.
    settings: the evaluator's: source, batch, limit, beams, pixel_neighbours.
    source: images and their texts, the references.
    neighbours: the source that `settings.pixel_neighbours` names, if any.
  """

  def __init__(
    self,
    config: Config,
    settings: Eval,
    forward: Forward,
    tokenizer: Tokenizer,
    source: Records,
    neighbours: Records | None = None,
  ):
    self._texts_of = functools.partial(own_texts, settings.source)
    wants = Wants(lambda record: [config.data.prompt + text for text in self._texts_of(record)], ends=False)
    self.stream = Stream(config, settings, forward, tokenizer, source, wants, lambda index, _: index)
    self.records, self.neighbours = source, neighbours
    self._references = {}  # record's index -> its texts; read once
    self._pixels: list[tuple[str, float]] | None = None

  def run(self, params) -> Iterator[tuple[str, float]]:
    """Yields 'nll' (nats a token, EOS included), 'perplexity' and, on the first process, the captions' scores.

    These are 'exact_match' (share of captions with the words of one of their references), 'bleu1' and 'examples'; of
    scenes also what `coca.evals.judged.judged` says. `PIXEL` are the scores of the first texts of the nearest training
    images.
    """
    forward = self.stream.forward
    nll, tokens, captions = 0.0, 0.0, {}
    writer = forward.writer(params)
    for batch in self.stream:
      local = batch.local
      first = {"text": local["text"][:, 0], "weight": local["weight"] * local["text_weight"][:, 0]}
      loss, count = forward.caption_loss(params, {"image": batch.device["image"], **forward.put(first)})
      nll, tokens = nll + float(to_host(loss)), tokens + float(to_host(count))
      ids = self.stream.write(params, writer, batch)
      for row in np.nonzero(batch.rows["weight"] > 0)[0]:
        captions[int(batch.rows["label"][row])] = ids[row]
    mean = nll / tokens if tokens else math.nan
    yield "nll", mean
    yield "perplexity", math.exp(min(mean, 100.0))  # that of a diverged model must not overflow
    if jax.process_index() == 0:
      yield from self._scores({i: self.stream.tokenizer.decode(ids) for i, ids in captions.items()})
      if self.neighbours is not None and self._pixels is None:
        records = self.stream.source
        found = {int(records.indices[n.index]): n.taken_over for n in nearest(records, self.neighbours, SOME)}
        self._pixels = [(f"pixel_{name}", value) for name, value in self._scores(found) if f"pixel_{name}" in PIXEL]
      yield from self._pixels or ()

  def _scores(self, captions: dict[int, str]) -> Iterator[tuple[str, float]]:
    unread = [i for i in captions if i not in self._references]
    found = read_ahead(lambda i: references(self.records, i, self._texts_of), unread)
    self._references.update(zip(unread, found, strict=True))
    pairs = [(caption, self._references[i]) for i, caption in captions.items() if self._references[i]]
    yield "exact_match", float(np.mean([matches(c, r) for c, r in pairs])) if pairs else math.nan
    yield "bleu1", bleu1([c for c, _ in pairs], [r for _, r in pairs])
    yield "examples", float(len(pairs))
    if isinstance(self.records, SceneSource):
      yield from judged(judge(caption, self.records.scene(i)) for i, caption in captions.items())


def references(source: Records, index: int, texts_of=texts.captions) -> tuple[str, ...]:
  """All texts of a record, or what `texts_of` says of it; none if it can't be read or has none."""
  try:
    return tuple(texts_of(source[index]))
  except BadRecord:
    return ()


def words(text: str) -> list[str]:
  """Lower-case runs of letters, digits and underscores: punctuation and spacing say nothing about an image."""
  return re.findall(r"\w+", text.lower())


def matches(caption: str, references: Sequence[str]) -> bool:
  """True if a caption has the words of a reference, in order (texts without words must be equal as they are)."""
  return any((words(caption) or caption) == (words(r) or r) for r in references)


def bleu1(captions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
  """Corpus BLEU with unigrams only (Papineni et al. 2002): clipped precision times brevity penalty.

  A word counts at most as often as in the reference that has it most often; the reference length is that of the closest
  one, the shorter of two equally close. Words as in `words`, not the Penn Treebank's.

  Args:
    captions: N texts.
    references: the true texts of each.

  Returns:
    between 0 and 1.
  """
  right = written = wanted = 0
  for caption, true in zip(captions, references, strict=True):
    mine, theirs = words(caption), [words(t) for t in true]
    most = Counter()
    for t in theirs:
      most |= Counter(t)
    right += (Counter(mine) & most).total()
    written += len(mine)
    wanted += min((abs(len(t) - len(mine)), len(t)) for t in theirs)[1]
  if not right:
    return 0.0
  return right / written * min(1.0, math.exp(1 - wanted / written))
