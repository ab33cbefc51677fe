"""Settings side by side, and long lists in messages."""

from collections.abc import Sequence


def flat(settings: dict, prefix: str = "") -> dict:
  """Nested settings by their names: {'model.image.size': 288, ...}."""
  out = {}
  for key, value in settings.items():
    out |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
  return out


def differing(before: dict, now: dict) -> dict[str, tuple]:
  """Both values of what differs, by name: {'model.image.size': (224, 288), ...}; None where a name is missing."""
  return {name: (before.get(name), now.get(name)) for name in sorted(before | now) if before.get(name) != now.get(name)}


def listed(items: Sequence[str], most: int = 8, joint: str = "\n  ") -> str:
  """The items one after another; of many the first ones, and how many more there are."""
  return joint.join([*items[:most], *([f"and {len(items) - most} more"] if len(items) > most else [])])
