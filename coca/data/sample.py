"""Records drawn evenly from several sources, whose texts are looked at before a run."""

import functools
import zlib
from collections.abc import Iterator, Mapping

import numpy as np
from tqdm import tqdm

from coca.data.records import BadRecord, Record, Records
from coca.files.threads import read_ahead


def some_records(
  sources: Mapping[str, Records], limit: int, seed: int, what: str
) -> Iterator[tuple[str, np.random.Generator, Record | BadRecord]]:
  """Yields the name of a source, random numbers of its own, and a record or why it can't be read.

  Records of sources that draw their images, those with `without_image`, come without.

  Args:
    sources: by name.
    limit: records at most.
    seed: decides which, if there are more.
    what: is said beside the progress.
  """

  def read(record_of, i):
    try:
      return record_of(i)
    except BadRecord as e:
      return e

  share = max(limit // len(sources), 1)
  total = sum(min(len(source), share) for source in sources.values())
  with tqdm(total=total, desc=what, disable=None, delay=5) as bar:
    for name in sorted(sources):
      source, rng = sources[name], np.random.default_rng([seed, zlib.crc32(name.encode())])
      record_of = getattr(source, "without_image", source.__getitem__)
      chosen = rng.choice(len(source), min(len(source), share), replace=False, shuffle=False)
      # In ascending order, because neighbours lie in one file; several at once, because a bucket answers late.
      for record in read_ahead(functools.partial(read, record_of), np.sort(chosen).tolist(), 16):
        bar.update()
        yield name, rng, record
