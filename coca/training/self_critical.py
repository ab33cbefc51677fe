"""Captions that the model draws before a step, and their CIDEr-D: what `coca.objectives.self_critical` learns from.

A step learns from what its own parameters drew, so nothing is carried from one step to the next, and a run that was
killed ends with the same parameters. That is why the device waits for the rewards, but for two things: while it draws,
the host weighs the references, and while it writes the greedy captions, the host scores those that were drawn. Drawing
and scoring stay outside the compiled step, which is then a function of arrays as that of any other loss: it runs on any
mesh, is planned for absent devices, and is found in the cache of programs, none of which a call back to Python allows.
"""

import sys
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from coca.config import Config, Decoding
from coca.config.special import Special, Tokenizer
from coca.data import texts
from coca.data.records import BadRecord, Record, Records
from coca.data.sample import some_records
from coca.decoding.decode import own_prompt
from coca.devices.host import to_host
from coca.evals.cider import Cider, Weighed, Words, frequencies
from coca.evals.ptb import tokens
from coca.inference.forward import Forward

END = ""  # the end of a text as a word; no other is empty
_STREAM = 1612  # of random numbers, beside others of the run's seed


class Critic:
  """(params, batch, step) -> the batch with 'samples' int32 [B, n, T], 'reward' and 'baseline' fp32 [B, n].

  Args:
    config: of the run.
    forward: its model's functions.
    tokenizer: the run's.
    sources: opened training sources by name. All of some of them, `config.self_critical.images`, are read once.
    rows: this host's row numbers of a global batch.

  Raises:
    ValueError: the sources have fewer than two images with texts.
  """

  def __init__(
    self, config: Config, forward: Forward, tokenizer: Tokenizer, sources: Mapping[str, Records], rows: np.ndarray
  ):
    self._seed, self._settings, self._forward, self._tokenizer = config.seed, config.self_critical, forward, tokenizer
    self._rows, self._special = rows, Special(tokenizer.bos, tokenizer.eos)
    self._drawn = Decoding(strategy="sample", n=self._settings.samples)
    given, self._begins = own_prompt(config, tokenizer, len(rows))
    self._given = forward.put(given | {"ids": rows.astype(np.uint32)})
    self._cider = _cider(config, sources)

  def put(self, batch: dict) -> dict:
    """This host's rows as global arrays, but for the references, which stay as they are."""
    references = batch["references"]
    rest = {name: x for name, x in batch.items() if name != "references"}
    return self._forward.put(rest) | {"references": references}

  def __call__(self, params, batch: dict, step: int) -> dict:
    """Draws with numbers of the run's seed and the step; `batch` is from `put`."""
    n, forward = self._settings.samples, self._forward
    seed = int(np.random.SeedSequence([self._seed, _STREAM, step]).generate_state(1)[0])
    writer, encoded = forward.writer(params), forward.encode(params, batch["image"])

    def write(decoding):
      return forward.caption(writer, encoded, decoding, special=self._special, **self._given).text

    # Both are under way when the host begins to wait for the first.
    drawn = write(replace(self._drawn, seed=seed))
    greedy = write(Decoding()) if self._settings.baseline == "greedy" else None
    references = [self._weigh(lines) for lines in batch["references"]]
    samples = to_host(drawn)[self._rows]
    reward = self._rewards(samples, references)
    if greedy is None:
      baseline = (reward.sum(axis=1, keepdims=True) - reward) / (n - 1)
    else:
      baseline = np.repeat(self._rewards(to_host(greedy)[self._rows], references), n, axis=1)
    made = {"samples": samples, "reward": reward.astype(np.float32), "baseline": baseline.astype(np.float32)}
    return {name: x for name, x in batch.items() if name != "references"} | forward.put(made)

  def _weigh(self, lines: str) -> list[Weighed]:
    """An image's references; of a record that could not be read there are none."""
    return [self._cider.weigh(reference(text, self._settings.ends)) for text in lines.split("\n") if text]

  def _rewards(self, ids: np.ndarray, references: list[list[Weighed]]) -> np.ndarray:
    """CIDEr-D, float64 [b, n], of texts int32 [b, n, T]."""
    return np.array(
      [
        [self._cider.score(self._words(row), own) if own else 0.0 for row in rows]
        for rows, own in zip(ids, references, strict=True)
      ]
    )

  def _words(self, ids: np.ndarray) -> Words:
    """The words of a text that was drawn. One that was cut at the model's length has no end."""
    words = tokens(self._tokenizer.decode(ids[self._begins :]))
    return [*words, END] if self._settings.ends and self._special.eos in ids else words


def reference(text: str, ends: bool) -> list[str]:
  """The words of a true caption, its end among them where that counts."""
  return [*map(sys.intern, tokens(text)), *[END] * ends]


def _cider(config: Config, sources: Mapping[str, Records]) -> Cider:
  """The measure by the training data's document frequencies, as the public code's files of COCO's training split."""
  settings = config.self_critical

  def images():
    for *_, record in some_records(sources, settings.images, config.seed, "n-grams"):
      if isinstance(record, Record):
        try:
          yield [reference(text, settings.ends) for text in texts.captions(record)]
        except BadRecord:
          continue

  found, count = frequencies(images())
  if count < 2:
    raise ValueError(
      f"config.self_critical.weight needs images with texts, and {', '.join(sources)} have {count}: no n-gram is rarer "
      "than another"
    )
  return Cider({gram: n for gram, n in found.items() if n > 1}, count)  # most are of one image: they count as 1 anyway
