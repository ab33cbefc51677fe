"""The texts of a run, looked at before it: how many are cut, and how much the tokenizer does not know."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from coca.config import Config
from coca.config.special import Tokenizer
from coca.data import questions, texts
from coca.data.records import BadRecord, Records
from coca.data.texts import all_unknown
from coca.files.threads import read_ahead

PLACES = 32  # where records are looked at, spread over the sources
RUN = 16  # records at each place, one behind the other: neighbours in a file cost little more than one
UNKNOWN = 0.01  # share of the tokens from which on it is said


def survey(config: Config, sources: Mapping[str, Records], tokenizer: Tokenizer) -> list[str]:
  """Looks at some texts of each training source, as training draws them; images are not decoded.

  Args:
    config: the run's.
    sources: opened training sources by name.
    tokenizer: the run's.

  Returns:
    a line for each source with records that can't be used, for each whose texts, or the answers to whose questions, are
    cut, and for each with unknown words.
  """
  lines = []
  for name in sorted(sources) if config.model.text.layers else ():
    found = list(_texts(name, sources[name], config, max(PLACES // len(sources), 2)))
    if wrong := [problem for problem in found if isinstance(problem, str)]:
      lines.append(
        f"{name}: {len(wrong)} of {len(found)} records that were looked at can't be used, such as {wrong[0]}"
      )
    read = [kinds for kinds in found if not isinstance(kinds, str)]
    kinds = [("texts", [text for text, _ in read], config.model.text.length, "config.model.text.length")]
    if config.answering.weight:
      kinds.append(
        ("answers", [a for _, given in read for a in given], config.answering.length, "config.answering.length")
      )
    for what, found, length, setting in kinds:
      if found:
        lines += [f"{name}: {line}" for line in _said(what, found, length, setting, tokenizer)]
  return lines


def _said(what: str, found: list[str], length: int, setting: str, tokenizer: Tokenizer) -> Iterator[str]:
  ids = [tokenizer.tokens(text) for text in found]
  needed = np.array([len(i) for i in ids]) + 2  # BOS and EOS
  if cut := int((needed > length).sum()):
    most, longest = int(np.quantile(needed, 0.99, method="higher")), needed.max()
    enough = f"{most} do for 99 % of them, " if most > length else ""
    before, after = len(set(map(tuple, ids))), len({tuple(i[: length - 2]) for i in ids})
    equal = f". {before} different ones become {after}" if after < before else ""
    yield (
      f"{cut} of {len(found)} {what} that were looked at are cut, for they have more than the {length} tokens of "
      f"{setting}; {enough}{longest} for all{equal}"
    )
  counts = Counter(token for i in ids for token in i if token == tokenizer.unknown or token != tokenizer.blank)
  unknown = counts[tokenizer.unknown] / max(counts.total(), 1)
  nothing = [text for text, i in zip(found, ids, strict=True) if i and all_unknown(tokenizer, i)]
  if unknown >= UNKNOWN or nothing:
    only = f", and {len(nothing)} of {len(found)} {what} hold nothing else, such as {nothing[0]!r}" if nothing else ""
    yield (
      f"{unknown:.1%} of the tokens of {what} are unknown to the tokenizer, and all alike to the model{only}. "
      "Name one that knows them in config.data.tokenizer, or have one trained with a larger "
      "config.model.text.vocab (from 8192 on, SentencePiece spells in bytes what it has no piece for)"
    )


def _texts(name: str, source: Records, config: Config, places: int) -> Iterator[tuple[str, list[str]] | str]:
  """A text of each record, and its answers; or why it can't be used."""
  settings, rng = config.data.sources[name], np.random.default_rng(config.seed)

  def read(i):
    try:
      return replace(source[i], image=b"")
    except BadRecord as e:
      return e

  starts = np.linspace(0, max(len(source) - RUN, 0), places).astype(int)
  chosen = np.unique(starts[:, None] + np.arange(RUN))
  for record in read_ahead(read, chosen[chosen < len(source)].tolist(), 16):
    if isinstance(record, BadRecord):
      yield str(record)
      continue
    try:
      if config.answering.weight:
        yield questions.question_of(record), [text for t in record.texts if (text := texts.collapse(t.text))]
      else:
        text = texts.choose(record, settings.text, settings.prompts, rng, settings.origins)
        yield config.data.prompt + text, []
    except BadRecord as e:
      yield f"{record.key}: {e}"
