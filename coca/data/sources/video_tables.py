"""Tables of videos as data sets publish them, as rows: {"video_id": names, "label": ...}; names without their ending.

    MSR-VTT          {"videos": [{"video_id": ..., "split": ...}], "sentences": [{"video_id": ..., "caption": ...}]}
    MSRVTT-QA        [{"video_id": 7010, "question": ..., "answer": ..., "id": ...}], of video7010
    MSVD-QA          the same; "-4wsuPCjDBc_5_15 vid1201" in youtube_mapping.txt names the file of 1201
    Kinetics         label,youtube_id,time_start,time_end,split, of -4wsuPCjDBc_000005_000015
    Moments in Time  blocking/NAME.mp4,blocking,AGREED,DISAGREED without a first line; moments_categories.txt has all
                     labels, and the videos are in training/ and validation/

Of Kinetics and Moments in Time, `LACKS` marks rows whose video may be gone: from YouTube, some are each month.
"""

import csv
import io
from collections.abc import Callable, Iterator

from coca.files.finding import VIDEO_EXTENSIONS

LACKS = "may be gone"
MAPPING, CATEGORIES = "youtube_mapping.txt", "moments_categories.txt"
KINETICS = {"label", "youtube_id", "time_start", "time_end"}  # of its columns

Rows = Iterator[tuple[str, dict | str]]


def msrvtt(name: str, videos: list, sentences: list, split: str) -> Rows:
  """The rows of MSR-VTT's files. Raises ValueError if there are none of that split, as they are taken."""
  wanted = {"val": "validate", "validation": "validate"}.get(split, split)
  splits = {str(v.get("video_id")): str(v.get("split", "")) for v in videos if isinstance(v, dict)}
  if wanted and wanted not in (found := set(splits.values())) and found != {""}:
    raise ValueError(f"{name} has no split {split!r}; it has: {', '.join(sorted(found))}")
  for number, sentence in enumerate(sentences, 1):
    where = f"{name}, sentence {number}"
    video = str(sentence.get("video_id")) if isinstance(sentence, dict) else ""
    if video not in splits:
      yield where, 'its "video_id" is none of the "videos"'
    elif not wanted or splits[video] in (wanted, ""):
      yield where, {"video_id": video, "caption": sentence.get("caption")}


def asks(values: list) -> bool:
  """True of the entries of MSRVTT-QA's and MSVD-QA's files."""
  return isinstance(values[0], dict) and {"video_id", "question", "answer"} <= set(values[0])


def questions(name: str, values: list, beside: Callable[[str], bytes]) -> Rows:
  """The rows of those files. `beside` reads another file of the folder, and raises FileNotFoundError."""
  try:
    lines = [line.split() for line in beside(MAPPING).decode("utf-8-sig").splitlines()]
    files = {line[-1]: " ".join(line[:-1]) for line in lines if len(line) > 1}
  except (FileNotFoundError, UnicodeDecodeError):
    files = {}
  for number, row in enumerate(values, 1):
    where, video = f"{name}, entry {number}", row.get("video_id") if isinstance(row, dict) else None
    if not isinstance(video, int | str):
      yield where, 'it has no "video_id"'
      continue
    names = (f"video{video}", f"vid{video}") if isinstance(video, int) else (video,)
    mapped = tuple(files[n] for n in names if n in files)
    asked = {"question": row.get("question"), "answers": [row.get("answer")], "#": row.get("id", number)}
    yield where, {"video_id": mapped or names} | asked


def kinetics(rows: Rows) -> Rows:
  """The rows of Kinetics' tables."""
  for where, row in rows:
    if not isinstance(row, dict):
      yield where, row
      continue
    try:
      start, end = (int(float(row[column])) for column in ("time_start", "time_end"))
    except (TypeError, ValueError):
      yield where, f"time_start {row['time_start']!r} and time_end {row['time_end']!r} are no seconds"
      continue
    names = f"{row['youtube_id']}_{start:06d}_{end:06d}", row["youtube_id"]
    yield where, {"video_id": names, "label": row["label"], LACKS: True}


def is_moments(text: str) -> bool:
  """True of Moments in Time's tables, by their first line."""
  path, comma, _ = text.lstrip().partition("\n")[0].partition(",")
  return bool(comma) and "/" in path and path.lower().endswith(tuple(f".{ending}" for ending in VIDEO_EXTENSIONS))


def moments(name: str, text: str, beside: Callable[[str], bytes] | None) -> Rows:
  """The rows of those tables. Labels that are none of the categories, where these are told, are wrong."""
  try:
    known = beside(CATEGORIES).decode("utf-8-sig").splitlines() if beside else []
  except FileNotFoundError:
    known = []
  known = {line.rpartition(",")[0].strip() or line.strip() for line in known}
  reader = csv.reader(io.StringIO(text, newline=""))
  for fields in reader:
    where = f"{name}, line {reader.line_num}"
    if len(fields) < 2:
      yield where, "a row has a path and a label"
    elif known and fields[1] not in known:
      yield where, f"the label {fields[1]!r} is none of those in {CATEGORIES}"
    else:
      path = fields[0].rpartition(".")[0]
      names = tuple(f"{folder}{path}" for folder in ("training/", "validation/", ""))
      yield where, {"video_id": names, "label": fields[1], LACKS: True}
