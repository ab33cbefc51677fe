"""The built-in world in the layouts of public evaluation sets, as they are handed on; `suites.py` writes them.

What all of it shows are scenes of the first 26 objects (`coca.recipes.tiny.scenes`), but for ImageNet-R's folders.
"""

import io
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from coca.config import Scenes, Source
from coca.data.scenes import export
from coca.data.scenes.compose import World
from coca.data.scenes.draws import Draws
from coca.data.scenes.grammar import Group, Sentence, captions, forms, say
from coca.data.scenes.judge import judge_statement
from coca.data.scenes.scene import OPPOSITE, Scene
from coca.data.scenes.twins import other_side
from coca.data.sources import open_source
from coca.evals.class_names import _table
from coca.recipes.tiny import OBJECTS, scenes

TEMPLATES = (
  "a {c} in the desert",
  "a {c} on the beach",
  "a drawing of a {c} on the street",
  "there is a {c} in the snow",
)
WDS = {  # CLIP_benchmark's folders
  "wds_objects": scenes("scenes_val", objects=1),
  "wds_objects_new_style": scenes("scenes_new_style", objects=1),
  "wds_twemoji": Source(kind="builtin", split="twemoji"),
  "wds_scenes": scenes("scenes_val"),
  "wds_scenes_new_style": scenes("scenes_new_style"),
}
DOMAINS = {"in-domain": "scenes_val", "near-domain": "scenes_new_pairs", "out-domain": "scenes_new_style"}  # as NoCaps'
PIXELS = 60
CAPTIONS, NOCAPS = "annotations/captions_val2017.json", "nocaps_val_4500_captions.json"
QUESTIONS = "v2_OpenEnded_mscoco_val2014_questions.json"


def clip_benchmark(out: Path, count: int, shard: int = 500) -> None:
  """A tree of five folders of tars: objects and emoji, a class each, and scenes with up to five sentences."""
  for name, settings in WDS.items():
    source, test = open_source(settings), out / name / "test"
    test.mkdir(parents=True)
    retrieval, number = "scenes" in name, min(count, len(source))
    for start in range(0, number, shard):
      with tarfile.open(test / f"{start // shard}.tar", "w") as tar:
        for i in range(start, min(start + shard, number)):
          record = source[i]
          webp = record.image[8:12] == b"WEBP"
          label = ("txt", "\n".join(t.text for t in record.texts)) if retrieval else ("cls", str(record.label))
          files = {"webp" if webp else "png": record.image if webp else _png(record.image), label[0]: label[1].encode()}
          for extension, data in files.items():
            member = tarfile.TarInfo(f"s{i:07d}.{extension}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    (test / "nshards.txt").write_text(f"{-(-number // shard)}\n")
    if retrieval:
      (out / name / "dataset_type.txt").write_text("retrieval\n")
    else:
      (out / name / "classnames.txt").write_text("".join(f"{label}\n" for label in source.label_names))
      templates = ("{c}",) if "emoji" in name else TEMPLATES
      (out / name / "zeroshot_classification_templates.txt").write_text("".join(f"{line}\n" for line in templates))


def imagenet_r(out: Path, count: int) -> None:
  """A folder for each of ImageNet-R's WordNet ids of which the world has the object, with renditions in a new style."""
  ids = {name: id_ for id_, marks, name in _table("imagenet.tsv") if "r" in marks}
  source = open_source(Source(kind="builtin", split="scenes_new_style", scenes=Scenes(pixels=PIXELS, objects=1)))
  named = ((i, source.scene(i)) for i in range(len(source)))
  found = ((i, scene) for i, scene in named if scene.things[0].name in ids)
  folder = export.Folder(out, PIXELS, count)
  for i, scene in islice(found, count):
    folder.image(f"{ids[scene.things[0].name]}/sketch_{i}.jpg", scene)


def karpathy(out: Path, count: int) -> None:
  """COCO as Karpathy split it: dataset_coco.json, and the images in a folder below."""
  images = []
  for i, name, texts in _captioned(out, count, "scenes_val", "val2014/COCO_val2014_{:012d}.jpg"):
    sentences = [{"raw": text, "tokens": text.split(), "imgid": i, "sentid": 5 * i + k} for k, text in enumerate(texts)]
    folder, _, file = name.partition("/")
    row = {"filepath": folder, "filename": file, "imgid": i, "cocoid": i, "split": "test", "sentences": sentences}
    images.append(row)
  export.Folder(out, 0, 0).json("dataset_coco.json", {"dataset": "coco", "images": images})


def coco(out: Path, count: int) -> None:
  """COCO's own: annotations/captions_val2017.json beside val2017/."""
  _coco(out, count, {"": "scenes_new_style"}, "val2017/{:012d}.jpg", CAPTIONS)


def nocaps(out: Path, count: int) -> None:
  """NoCaps: its images are in a domain each."""
  _coco(out, count // len(DOMAINS), DOMAINS, "images/{:016x}.jpg", NOCAPS)


def vqa(out: Path, count: int) -> None:
  """VQA v2."""
  export.vqa(World("scenes_val", vocabulary=OBJECTS), export.Folder(out, PIXELS, count), train=False)


def sugar_crepe(out: Path, count: int) -> None:
  """SugarCrepe: a file for each way in which a caption is made wrong, here by the world's grammar."""
  world, parts = World("scenes_val", vocabulary=OBJECTS), {}
  folder = export.Folder(out, PIXELS, count)
  for i in range(count):
    scene, draws, name = world[i], Draws("crepe", i), f"{i:012d}.jpg"
    folder.image(f"val2017/{name}", scene)
    own = captions(scene, draws, 1)[0]
    for part, text in _wrong(own, scene, draws, world.names):
      rows = parts.setdefault(part, {})
      rows[str(len(rows))] = {"filename": name, "caption": own.text, "negative_caption": text}
  for part, rows in parts.items():
    folder.json(f"data/{part}.json", rows)


def winoground(out: Path, count: int) -> None:
  """Winoground, as its authors give it and as Parquet: two things change sides, and so do their names."""
  world, examples, rows, number = World("scenes_val", vocabulary=OBJECTS), [], [], 0
  folder = export.Folder(out, PIXELS, count)
  while len(examples) < count // 2:
    scene, draws, number = world[number], Draws("winoground", number), number + 1
    own, twin = captions(scene, draws, 1)[0], other_side(scene, world)
    if not twin or not own.statement.relation or own.statement.first.count != own.statement.second.count:
      continue
    swapped = replace(own.statement, first=own.statement.second, second=own.statement.first)
    if not judge_statement(swapped, twin):
      continue
    n, texts = len(examples), (own.text, say(swapped, own.form, own.phrase))
    names = [f"ex_{n}_img_{k}" for k in (0, 1)]
    said = {"id": n, "tag": "Relation"} | {f"caption_{k}": texts[k] for k in (0, 1)}
    for name, shown in zip(names, (scene, twin), strict=True):
      folder.image(f"images/{name}.png", shown)
    examples.append(said | {f"image_{k}": names[k] for k in (0, 1)})
    files = [(out / "images" / f"{name}.png") for name in names]
    rows.append(said | {f"image_{k}": {"bytes": file.read_bytes(), "path": file.name} for k, file in enumerate(files)})
  folder.lines("examples.jsonl", examples)
  (out / "data").mkdir()
  pq.write_table(pa.Table.from_pylist(rows), out / "data" / "test-00000-of-00001.parquet", row_group_size=100)


SUITES = (clip_benchmark, imagenet_r, karpathy, coco, nocaps, vqa, sugar_crepe, winoground)


def _png(image: bytes) -> bytes:
  return cv2.imencode(".png", cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR))[1].tobytes()


def _captioned(out: Path, count: int, split: str, name: str, first: int = 0) -> Iterator[tuple[int, str, list[str]]]:
  """Draws scenes; yields their numbers, the names of their files and their sentences."""
  source, folder = open_source(scenes(split)), export.Folder(out, PIXELS, count)
  for i in range(count):
    folder.image(name.format(first + i), source.scene(i))
    yield first + i, name.format(first + i), [text.text for text in source[i].texts]


def _coco(out: Path, count: int, splits: dict[str, str], name: str, path: str) -> None:
  images, annotations = [], []
  for domain, split in splits.items():
    for i, file, texts in _captioned(out, count, split, name, len(images)):
      size = {"width": PIXELS, "height": PIXELS}
      images.append({"id": i, "file_name": file.rpartition("/")[2], **size, **({"domain": domain} if domain else {})})
      annotations += [{"image_id": i, "id": 5 * i + k, "caption": text} for k, text in enumerate(texts)]
  export.Folder(out, 0, 0).json(path, {"info": {"description": "scenes"}, "images": images, "annotations": annotations})


def _wrong(own: Sentence, scene: Scene, draws: Draws, names) -> Iterator[tuple[str, str]]:
  """SugarCrepe's seven ways to make a caption wrong, as far as this one allows them: the file of each, and a text."""
  said = own.statement
  a, b = said.first, said.second
  new = draws.choice([name for name in names if name not in scene.groups()])
  changed = {
    "replace_obj": replace(said, first=replace(a, name=new)),
    "replace_att": replace(said, first=replace(a, count=draws.choice([n for n in range(1, 5) if n != a.count]))),
    "add_att": None if a.size else replace(said, first=replace(a, size=draws.choice(("big", "small")))),
    "add_obj": None if b else replace(said, second=Group(1, new)),
  }
  if b:
    swapped = replace(said, first=replace(a, name=b.name), second=replace(b, name=a.name))
    counts = replace(said, first=replace(a, count=b.count), second=replace(b, count=a.count))
    changed |= {"swap_obj": swapped, "swap_att": counts}
  if said.relation:
    changed["replace_rel"] = replace(said, relation=OPPOSITE[said.relation])
  for part, statement in changed.items():
    if statement and own.form in forms(statement) and not judge_statement(statement, scene):
      yield part, say(statement, own.form, own.phrase)
