"""By what it is known that a source has other records than before."""

import hashlib

from coca.data.records import BadRecord, Records
from coca.files.threads import read_ahead

SAMPLE = 8  # records that stand for all of a source


def fingerprint(source: Records) -> dict:
  """The number of a source's records, and a hash of some, by which it is known when it has moved."""

  def read(i):
    try:
      record = source[i]
      return repr([(t.text, t.origin) for t in record.texts]).encode("utf-8", "backslashreplace") + record.image
    except BadRecord:
      return b""

  count, sha256 = len(source), hashlib.sha256()
  for data in read_ahead(read, sorted({n * (count - 1) // (SAMPLE - 1) for n in range(SAMPLE)}), SAMPLE):
    sha256.update(len(data).to_bytes(8, "little") + data)
  return {"records": count, "sample_sha256": sha256.hexdigest()}
