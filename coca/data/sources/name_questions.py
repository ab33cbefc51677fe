"""Questions that an image's name answers: enough to train and test question answering where there is no such data set.

Of each image: what it shows (its name), whether it shows that name (yes), and whether it shows another image's
(no). The last is as right as names are exclusive: a "grinning face" is called no "smiling face", though it is one.
Names are cleaned as questions are, since an answer counts only if it is the annotator's to the letter.
"""

import bisect
import dataclasses
import zlib

from coca.data.questions import clean
from coca.data.records import Record, Shard, ShardedRecords, Text


class NameQuestions:
  """Three records for each of `source`: the keys are KEY, KEY#1 and KEY#2, the answers one each.

  Args:
    source: labelled images, `label_names` being their names.

  Raises:
    ValueError: all images have the same name.
  """

  def __init__(self, source: ShardedRecords):
    self._names = sorted({clean(name) for name in source.label_names})
    if len(self._names) < 2:
      raise ValueError(f"source question_key 'name': {source.name} has a single name, and no other to ask for")
    self.name, self.problems, self.label_names, self._source = (
      f"{source.name}, questions",
      source.problems,
      source.label_names,
      source,
    )

  def __len__(self) -> int:
    return 3 * len(self._source)

  def __getitem__(self, i: int) -> Record:
    if not 0 <= i < len(self):
      raise IndexError(f"{self.name}: record {i} of {len(self)}")
    record, kind, names = self._source[i // 3], i % 3, self._names
    name = clean(self.label_names[record.label])
    if kind == 0:
      question, answer = "what does it show?", name
    elif kind == 1:
      question, answer = f"does it show {name}?", "yes"
    else:  # another name than its own, always the same one
      own, step = bisect.bisect_left(names, name), 1 + zlib.crc32(record.key.encode()) % (len(names) - 1)
      question, answer = f"does it show {names[(own + step) % len(names)]}?", "no"
    key = f"{record.key}#{kind}" if kind else record.key
    return dataclasses.replace(record, key=key, texts=(Text(answer, record.texts[0].origin),), question=question)

  @property
  def shards(self) -> list[Shard]:
    """The source's."""
    return [Shard(s.name, 3 * s.start, 3 * s.stop) for s in self._source.shards]
