"""What TensorBoard reads."""

from tensorboardX.proto.event_pb2 import Event


def events(folder):
  """The TensorBoard events: records of length (8 bytes), checksum (4), data, checksum (4)."""
  found = []
  for path in sorted((folder / "tensorboard").iterdir()):
    data = path.read_bytes()
    while data:
      n = int.from_bytes(data[:8], "little")
      found.append(Event.FromString(data[12 : 12 + n]))
      data = data[16 + n :]
  return found
