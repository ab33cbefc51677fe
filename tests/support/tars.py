"""WebDataset tars for tests, written by Python's tarfile."""

import io
import json
import tarfile

from PIL import Image


def picture(n, kind="JPEG"):
  data = io.BytesIO()
  Image.new("RGB", (8 + n, 8), (n, 2 * n, 3 * n)).save(data, kind)
  return data.getvalue()


def sample(n):
  meta = {"caption": f"json {n}", "alts": [f"first {n}", "", f"second {n}"], "status": "success"}
  return {f"{n:09d}.jpg": picture(n), f"{n:09d}.json": json.dumps(meta).encode(), f"{n:09d}.txt": f"pair {n}".encode()}


def tar(members, format=tarfile.USTAR_FORMAT):
  data = io.BytesIO()
  with tarfile.open(fileobj=data, mode="w", format=format) as f:
    for name, body in members.items():
      info = tarfile.TarInfo(name)
      info.size = len(body)
      f.addfile(info, io.BytesIO(body))
  return data.getvalue()


def shard(first, count):
  return tar({k: v for n in range(first, first + count) for k, v in sample(n).items()})


def clip_benchmark(folder, images, labels=(), names=(), templates=("a photo of a {c}.",), captions=(), shards=2):
  """A folder as CLIP_benchmark's webdataset_builder writes it: of labels, or of captions, a list for each image.

  Images are encoded ones; its keys, members, lossless WebP and files of text are those of clip_benchmark 1.6.2.
  """
  (folder / "test").mkdir(parents=True)
  per, kind = -(-len(images) // shards), "webp"
  for number, start in enumerate(range(0, len(images), per)):
    members = {}
    for i in range(start, min(start + per, len(images))):
      said = {"txt": "\n".join(captions[i])} if captions else {"cls": str(labels[i])}
      members |= {f"s{i:07d}.{extension}": text.encode() for extension, text in said.items()}
      members[f"s{i:07d}.{kind}"] = images[i]
    (folder / "test" / f"{number}.tar").write_bytes(tar(members))
  (folder / "test" / "nshards.txt").write_text(f"{number + 1}\n")
  if captions:
    (folder / "dataset_type.txt").write_text("retrieval\n")
  else:
    (folder / "classnames.txt").write_text("".join(f"{name}\n" for name in names))
    (folder / "zeroshot_classification_templates.txt").write_text("".join(f"{t}\n" for t in templates))
