"""Sources of image-text pairs, one module a format: `coca.data.records.ShardedRecords` is what they have in common."""

from coca import config
from coca.config.data_checks import check_source
from coca.data.records import ShardedRecords
from coca.files.finding import SETTING

PLACES = ("texts", "subset", "sidecars")  # settings of more files to open


def open_source(settings: config.Source, where: str = SETTING) -> ShardedRecords:
  """Opens the source that `settings` describe.

  Args:
    settings: of the source.
    where: its name in the config, for errors.

  Raises:
    FileNotFoundError: nothing is there; the message says what was looked for and how to prepare it.
    ValueError: what is there cannot be read as `settings.kind`, or its sidecars can't be used (`SidecarError`).
    ImportError: it is of videos, and PyAV is not installed.
  """
  try:
    check_source(settings, where)
    if settings.videos and settings.kind != "builtin":
      from coca.data.videos import check_installed

      check_installed(where)
    if settings.subset or (settings.texts and settings.kind not in ("folder", "pairs", "dialogs")):
      from coca.data.sources.joined import open_joined

      source = open_joined(lambda own: _open(own, where), settings, where)
    else:
      source = _open(settings, where)
    if not settings.sidecars:
      return source
    from coca.data.sources.bootstrapped import Bootstrapped

    return Bootstrapped(source, settings, where)
  except (FileNotFoundError, ValueError) as e:
    if where == SETTING or where in str(e):
      raise
    kind = FileNotFoundError if isinstance(e, FileNotFoundError) else ValueError
    raise kind(f"{where}: {e}") from None


def places_of(settings: config.Source, where: str) -> dict[str, str]:
  """The places that `open_source` would open, by the names of the settings; none for the corpus in the package."""
  path = "" if settings.kind == "builtin" else settings.path
  found = {f"{where}.path": path} | {f"{where}.{name}": getattr(settings, name) for name in PLACES}
  return {name: path for name, path in found.items() if path}


def check_places(places: dict[str, str], allow_urls: bool, whose: str) -> None:
  """Says which data are opened because a workdir, which somebody else may have made, names them.

  Args:
    places: paths and URLs by the names of their settings.
    allow_urls: whether URLs may be opened.
    whose: the file that names them.

  Raises:
    ValueError: there are URLs, and they may not.
  """
  for name, path in places.items():
    print(f"{whose} names {name}: {path}", flush=True)
  remote = [path for path in places.values() if "://" in path or "::" in path]
  if remote and not allow_urls:
    raise ValueError(
      f"{whose} names data that are not on this machine: {', '.join(remote)}. They are opened, with "
      "your credentials, only with --allow_urls"
    )


def _open(settings: config.Source, where: str) -> ShardedRecords:
  # Each format imports its own library, and only when it is used.
  if settings.kind == "builtin" and settings.split.startswith(
    ("scenes_questions", "scenes_hypotheses", "scenes_statements", "scenes_videos", "scenes_dialogs")
  ):
    from coca.data.sources.scene_tasks import open_task

    return open_task(settings, where)
  if settings.kind == "builtin" and settings.split.startswith("scenes"):
    from coca.data.sources.scenes import open_scenes

    return open_scenes(settings, where)
  if settings.kind == "builtin":
    from coca.data.sources.tfds import open_builtin

    return open_builtin(settings)
  if settings.kind == "tfds":
    from coca.data.sources.tfds import open_tfds

    return open_tfds(settings)
  if settings.kind == "webdataset":
    from coca.data.sources.webdataset import open_webdataset

    return open_webdataset(settings, where)
  if settings.kind == "parquet":
    from coca.data.sources.parquet import open_parquet

    return open_parquet(settings, where)
  if settings.kind == "folder":
    from coca.data.sources.folder import open_folder

    return open_folder(settings, where)
  if settings.kind == "pairs":
    from coca.data.sources.pairs import open_pairs

    return open_pairs(settings, where)
  if settings.kind == "dialogs":
    from coca.data.sources.dialogs import open_dialogs

    return open_dialogs(settings, where)
  raise ValueError(
    f"source kind {settings.kind!r}; it may be 'builtin', 'tfds', 'webdataset', 'parquet', 'folder', 'pairs', 'dialogs'"
  )
