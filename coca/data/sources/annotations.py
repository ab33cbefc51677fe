"""Annotation files as COCO and Karpathy publish them, as rows of a table: {"file_name": ..., "caption": ...}.

    COCO      {"images": [{"id": 9, "file_name": ...}], "annotations": [{"image_id": 9, "caption": ...}]}
    Karpathy  {"images": [{"filename": ..., "filepath": ..., "split": ..., "sentences": [{"raw": ...}]}]}

RSICD, UCM, Sydney and Flickr30k come in Karpathy's layout. His 'restval' of COCO is trained on, as all papers do.
"""

import re
from collections.abc import Iterator

# What such files are called: captions_train2017.json, dataset.json, dataset_rsicd.json; tfds has a dataset_info.json.
NAMES = re.compile(r"(captions_.*|dataset(_(?!infos?\.).*)?)\.json", re.IGNORECASE)


def rows(name: str, values: dict, split: str) -> Iterator[tuple[str, dict | str]]:
  """Yields the place of each row in the file, and the row or what is wrong with it.

  Args:
    name: of the file.
    values: what it holds, with a list "images".
    split: of Karpathy's, which to take; empty: all.

  Raises:
    ValueError: there are no captions in it, or none of this split.
  """
  images = [image if isinstance(image, dict) else {} for image in values["images"]]
  if isinstance(values.get("annotations"), list):
    yield from _coco(name, images, values["annotations"])
    return
  if not any("sentences" in image for image in images):
    raise ValueError(f'{name} has "images", but neither "annotations" (COCO) nor "sentences" in them (Karpathy)')
  wanted = {"train": ("train", "restval")}.get(split, (split,))
  found = {str(image.get("split", "")) for image in images}
  if split and not found.intersection(wanted) and found != {""}:
    raise ValueError(f"{name} has no split {split!r}; it has: {', '.join(sorted(found))}")
  for number, image in enumerate(images, 1):
    if split and image.get("split") and image["split"] not in wanted:
      continue
    sentences = image.get("sentences")
    texts = [s.get("raw") for s in sentences if isinstance(s, dict)] if isinstance(sentences, list) else None
    path = image.get("filename", image.get("file_name"))
    if isinstance(path, str) and isinstance(image.get("filepath"), str):
      path = f"{image['filepath']}/{path}"
    yield f"{name}, image {number}", {"file_name": path, "caption": texts}


def _coco(name: str, images: list[dict], annotations: list) -> Iterator[tuple[str, dict | str]]:
  paths = {str(image["id"]): image.get("file_name") for image in images if "id" in image}
  if not any(isinstance(a, dict) and "caption" in a for a in annotations):
    raise ValueError(f'{name}: none of its "annotations" has a "caption"; COCO\'s are in captions_*.json')
  for number, annotation in enumerate(annotations, 1):
    where = f"{name}, annotation {number}"
    image = str(annotation.get("image_id")) if isinstance(annotation, dict) else ""
    if image not in paths:
      yield where, 'its "image_id" is none of the "images"'
    else:
      yield where, {"file_name": paths[image], "caption": annotation.get("caption")}
