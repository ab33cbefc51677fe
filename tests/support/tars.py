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
