"""The built-in world in the layouts of public evaluation data, for `coca.evaluate`.

A tree of CLIP_benchmark's folders: wds_objects and wds_objects_new_style, scenes of a single thing, in the styles of
training and in another; wds_twemoji, its emoji, a class each; wds_scenes and wds_scenes_new_style, scenes with up to
five sentences.

    python tests/benchmarks/suites.py benchmarks --count=1000
    python -m coca.evaluate --model=runs/tiny --data=benchmarks --out=results
"""

import argparse
import io
import tarfile
from pathlib import Path

from coca.config import Scenes, Source
from coca.data.sources import open_source

TEMPLATES = (
  "a {c} in the desert",
  "a {c} on the beach",
  "a drawing of a {c} on the street",
  "there is a {c} in the snow",
)
SINGLE = Scenes(pixels=60, objects=1)
SETS = {
  "wds_objects": (Source(kind="builtin", split="scenes_val", scenes=SINGLE), "classification"),
  "wds_objects_new_style": (Source(kind="builtin", split="scenes_new_style", scenes=SINGLE), "classification"),
  "wds_twemoji": (Source(kind="builtin", split="twemoji"), "classification"),
  "wds_scenes": (Source(kind="builtin", split="scenes_val", scenes=Scenes(pixels=60)), "retrieval"),
  "wds_scenes_new_style": (Source(kind="builtin", split="scenes_new_style", scenes=Scenes(pixels=60)), "retrieval"),
}


def write(folder: Path, source, kind: str, count: int, shard: int = 500) -> None:
  """The first `count` records of a source as one of CLIP_benchmark's folders."""
  count, test = min(count, len(source)), folder / "test"
  test.mkdir(parents=True)
  starts = range(0, count, shard)
  for number, start in enumerate(starts):
    with tarfile.open(test / f"{number}.tar", "w") as tar:
      for i in range(start, min(start + shard, count)):
        record = source[i]
        label = {"txt": "\n".join(t.text for t in record.texts)} if kind == "retrieval" else {"cls": str(record.label)}
        extension = "webp" if record.image[8:12] == b"WEBP" else "jpg" if record.image[:2] == b"\xff\xd8" else "png"
        for name, data in {extension: record.image, **{k: v.encode() for k, v in label.items()}}.items():
          member = tarfile.TarInfo(f"s{i:07d}.{name}")
          member.size = len(data)
          tar.addfile(member, io.BytesIO(data))
  (test / "nshards.txt").write_text(f"{len(starts)}\n")
  if kind == "retrieval":
    (folder / "dataset_type.txt").write_text("retrieval\n")
  else:
    (folder / "classnames.txt").write_text("".join(f"{name}\n" for name in source.label_names))
    templates = ("{c}",) if "emoji" in folder.name else TEMPLATES
    (folder / "zeroshot_classification_templates.txt").write_text("".join(f"{line}\n" for line in templates))


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("out", type=Path)
  parser.add_argument("--count", type=int, default=1000, help="images of a data set at most")
  args = parser.parse_args()
  for name, (settings, kind) in SETS.items():
    write(args.out / name, open_source(settings), kind, args.count)


if __name__ == "__main__":
  main()
