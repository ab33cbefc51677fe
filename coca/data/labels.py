"""The classes of a run: the names of its training data's labels."""

from collections.abc import Mapping

from coca.config import Config
from coca.data.records import Records


def class_names(config: Config, sources: Mapping[str, Records]) -> tuple[str, ...]:
  """Names of the classes, in the order of their ids; none without a classification loss.

  Args:
    config: of the run.
    sources: opened training sources by name. One without labels takes no part in the loss.

  Raises:
    ValueError: no source has labels, two name them differently, or there are not `config.classification.classes`.
  """
  classes = config.classification.classes
  if not config.classification.weight:
    return ()
  found = {name: tuple(source.label_names) for name, source in sources.items() if source.label_names}
  if not found:
    raise ValueError(
      f"config.classification.weight needs labels, and none of config.data.sources has any: {', '.join(sources)}. "
      "docs/own-data.md says what each kind takes for labels"
    )
  (first, names), *others = found.items()
  for name, theirs in others:
    if theirs != names:
      raise ValueError(
        f"config.data.sources.{first} and {name} have labels of other names ({len(names)} and {len(theirs)}), so their "
        "ids mean different classes; train on one of them, or set config.classification.weight to 0"
      )
  if len(names) != classes:
    raise ValueError(
      f"config.classification.classes is {classes}, and config.data.sources.{first} has {len(names)} classes; set it "
      f"to {len(names)}"
    )
  return names
