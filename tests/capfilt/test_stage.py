"""The batches of the captioning stage: in order, of one shard each, read ahead by threads."""

from types import SimpleNamespace

from coca.capfilt.settings import CapFilt
from coca.capfilt.stage import AHEAD, Stage
from coca.data.records import BadRecord, Record


class Numbers:
  """A source whose records say which they are; the fourth is broken."""

  def __getitem__(self, i):
    if i == 3:
      raise BadRecord("record 3 is gone")
    return Record(str(i), bytes([i]), ())


def test_batches_are_of_one_shard_each_and_in_order():
  models = SimpleNamespace(
    settings=CapFilt(captioner="x", threads=3),
    identities={"filter": None},
    batch=4,
    prepare=lambda image: {"captioner": image},
  )
  asked = []

  def shards():
    for name, numbers in (("a", range(6)), ("none", ()), ("b", range(6, 14)), ("c", range(14, 60)), ("d", (60,))):
      asked.append(name)
      yield name, numbers

  stream = Stage(models, Numbers())._batches(shards())
  found = [next(stream)]
  assert asked == ["a", "none", "b", "c"] and AHEAD == 3  # what comes later waits
  found += stream
  assert found[-2:] == [None, None]
  seen = [(batch.shard, [item.index for item in batch.items], batch.last) for batch in found[:-2]]
  assert seen[:5] == [
    ("a", [0, 1, 2, 3], False),
    ("a", [4, 5], True),
    ("none", [], True),
    ("b", [6, 7, 8, 9], False),
    ("b", [10, 11, 12, 13], True),
  ]
  assert [n for shard, numbers, _ in seen for n in numbers] == list(range(61)) and seen[-1] == ("d", [60], True)
  assert [shard for shard, _, last in seen if last] == ["a", "none", "b", "c", "d"]
  items = [item for batch in found[:-2] for item in batch.items]
  assert all(item.image == {"captioner": bytes([item.index])} for item in items if item.index != 3)
  assert items[3].problem == "record 3 is gone" and items[3].image is None
