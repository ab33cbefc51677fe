"""Sources of image-text pairs, one module a format, all with random access.

A source has `len(source)`, `source[i]` (a `Record`; safe to call from several threads; raises `BadRecord` for a record
that cannot be read; one without a text has none in `Record.texts`), `name`, `problems` (what was found broken when it
was opened, one text each), `label_names` (the classes that `Record.label` indexes; empty where there are none) and
`shards` (a `Shard` for each input file that holds records, in their order, or one of the whole; a shard is read in
order at little cost).
"""

from coca import config
from coca.data import texts


def open_source(settings: config.Source):
  """Opens the source that `settings` describe.

  Raises:
    FileNotFoundError: nothing is there; the message says what was looked for and how to prepare it.
    ValueError: what is there cannot be read as `settings.kind`, or its sidecars can't be used (`SidecarError`).
  """
  # Each format imports its own library, and only when it is used.
  if settings.kind == "builtin":
    from coca.data.sources.tfds import open_builtin as open_
  elif settings.kind == "tfds":
    from coca.data.sources.tfds import open_tfds as open_
  elif settings.kind == "webdataset":
    from coca.data.sources.webdataset import open_webdataset as open_
  elif settings.kind == "parquet":
    from coca.data.sources.parquet import open_parquet as open_
  elif settings.kind == "folder":
    from coca.data.sources.folder import open_folder as open_
  else:
    raise ValueError(f"source kind {settings.kind!r}; it may be 'builtin', 'tfds', 'webdataset', 'parquet', 'folder'")
  texts.check_choice(settings, "config.data.sources.<name>")
  source = open_(settings)
  if settings.sidecars:
    from coca.data.sources.bootstrapped import Bootstrapped
    return Bootstrapped(source, settings)
  return source
