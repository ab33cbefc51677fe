"""tfds builder of the built-in corpus: what is in it, and how a row of the Parquet files becomes an example.

Four splits:
  train            four emoji styles, the same thing drawn up to four times, with its CLDR short name
  unseen_concepts  the same styles, concepts that `train` lacks ("train+unseen_concepts" is the four styles whole)
  twemoji          a style that is in neither; `unseen` marks the concepts that `train` lacks
  openclipart      clip art with the title it had on the web: raw and noisy, for CapFilt. `boilerplate_title` and
                   `file_name` (the better text, mostly) tell how noisy; they are no input for training
"""

import hashlib
import io
import pathlib
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow_datasets as tfds
from PIL import Image

SIZE = 64  # pixels a side
QUALITY = 75  # of WebP; higher is not told apart by eye at this size
STYLES = ("noto", "noto-v1", "fluent-3d", "fxemoji")
FILES = {
  "train": "emoji_train.parquet",
  "unseen_concepts": "emoji_unseen_concepts.parquet",
  "twemoji": "emoji_eval_twemoji.parquet",
  "openclipart": "web_openclipart.parquet",
}
COLUMNS = (
  "key",
  "image",
  "caption",
  "tags",
  "source",
  "concept",
  "skin_tone",
  "licence",
  "boilerplate_title",
  "file_name",
)
CLIPART = 2_500  # images
SAME_TITLE = 100  # images at most; 'gramastar' alone names 1,375


class CocaBuiltin(tfds.core.GeneratorBasedBuilder):
  """The built-in corpus. Its Parquet files are given as tfds' `manual_dir`."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012, tfds wants a plain dict
  # Where tfds would look for checksums of downloads. There are none, and looking needs importlib_resources, which
  # tfds 4.9.10 uses and does not ask for.
  code_path = None
  MANUAL_DOWNLOAD_INSTRUCTIONS = f"The folder with {', '.join(FILES.values())}."

  def _info(self) -> tfds.core.DatasetInfo:
    text = tfds.features.Text
    features = tfds.features.FeaturesDict(
      {
        "key": text(),
        "image": tfds.features.Image(shape=(SIZE, SIZE, 3)),
        "caption": text(),
        "tags": tfds.features.Sequence(text()),
        "source": text(doc="The style or collection."),
        "concept": text(doc="Emoji code points; empty elsewhere."),
        "unseen": tfds.features.Scalar(np.bool_, doc="An emoji whose concept no picture of 'train' shows."),
        "boilerplate_title": tfds.features.Scalar(np.bool_, doc="The caption names the collection, not the picture."),
        "file_name": text(doc="Words of the picture's file name; openclipart only."),
        "licence": text(),
      }
    )
    return tfds.core.DatasetInfo(
      builder=self,
      description="Drawings with their names: emoji in five styles and clip art. 64 px, WebP, on white.",
      features=features,
    )

  def _split_generators(self, dl_manager):
    folder = dl_manager.manual_dir
    return {split: self._generate_examples(pathlib.Path(folder), split) for split in FILES}

  def _generate_examples(self, folder: pathlib.Path, split: str):
    rows = read(folder / FILES[split])
    seen = {row["concept"] for row in select(read(folder / FILES["train"]), "train")}
    for row in select(rows, split):
      yield (
        row["key"],
        {
          "key": row["key"],
          "image": shrink(row["image"]),
          "caption": row["caption"],
          "tags": list(row["tags"] or ()),
          "source": row["source"],
          "concept": row["concept"],
          "unseen": bool(row["concept"]) and row["concept"] not in seen,
          "boilerplate_title": bool(row["boilerplate_title"]),
          "file_name": row["file_name"] or "",
          "licence": row["licence"],
        },
      )


def check(path: pathlib.Path) -> None:
  """Raises FileNotFoundError or ValueError, with the file and the columns it needs, if it cannot be used."""
  wanted = f"it needs the columns {', '.join(COLUMNS)}, with encoded images in 'image'"
  if not path.is_file():
    raise FileNotFoundError(f"{path} is missing; {wanted}")
  try:
    names = pq.read_schema(path).names
  except pa.ArrowInvalid as e:
    raise ValueError(f"{path} is no Parquet file ({e}); {wanted}") from None
  if missing := [c for c in COLUMNS if c not in names]:
    raise ValueError(f"{path} lacks {', '.join(missing)}; {wanted}")


def read(path: pathlib.Path) -> list[dict]:
  """The rows of a Parquet file; raises as `check`."""
  check(path)
  return pq.read_table(path, columns=list(COLUMNS)).to_pylist()


def select(rows: list[dict], split: str) -> list[dict]:
  """The rows that belong to `split`, each key once; the same ones in whatever order `rows` are."""
  # Skin tones multiply the images and tell nothing apart that a small model could learn.
  rows = sorted((r for r in rows if not r["skin_tone"]), key=lambda r: (r["key"], r["image"]))
  if split in ("train", "unseen_concepts"):
    rows = [r for r in rows if r["source"] in STYLES]
  kept, keys, images, titles = [], set(), set(), Counter()
  if split == "openclipart":
    rows.sort(key=lambda r: hashlib.sha256(r["key"].encode()).digest())
  for row in rows:
    if row["key"] in keys or not row["caption"].strip():
      continue
    if split == "openclipart":
      if row["image"] in images or titles[row["caption"]] == SAME_TITLE or len(kept) == CLIPART:
        continue
      images.add(row["image"])
      titles[row["caption"]] += 1
    keys.add(row["key"])
    kept.append(row)
  return kept


def shrink(encoded: bytes) -> bytes:
  """An encoded image as 64 px WebP on white."""
  image = Image.open(io.BytesIO(encoded)).convert("RGBA")
  image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
  image = image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
  out = io.BytesIO()
  image.save(out, "WEBP", quality=QUALITY, method=6)
  return out.getvalue()
