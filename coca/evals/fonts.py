"""Fonts for texts in any script, from what the system has: matplotlib's own, DejaVu Sans, knows no Chinese or Thai."""

import contextlib
from collections.abc import Iterable

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

DEFAULT = "DejaVu Sans"
NOT_A_FONT = "Last Resort"  # of matplotlib's: a box for every character there is


def families_for(texts: Iterable[str]) -> tuple[list[str], str]:
  """Font families that hold the texts' characters together, in matplotlib's order of falling back.

  Returns:
    the families, DejaVu Sans first, and the characters that no font here has.
  """
  fonts = font_manager.fontManager
  missing = {char for char in "".join(texts) if char.isprintable()} - _characters(font_manager.findfont(DEFAULT))
  families = [DEFAULT]
  if missing:
    known = {entry.fname for entry in fonts.ttflist}
    for path in set(font_manager.findSystemFonts()) - known:  # installed since matplotlib listed them
      with contextlib.suppress(Exception):  # no font, or a kind that it can't read
        fonts.addfont(path)
    has = {}
    for entry in fonts.ttflist:
      if entry.style == "normal" and not entry.name.startswith(NOT_A_FONT):
        has.setdefault(entry.name, missing & _characters(entry.fname))
    while missing and (best := max(sorted(has), key=lambda name: len(has[name] & missing))) and has[best] & missing:
      families.append(best)
      missing = missing - has[best]
  return families, "".join(sorted(missing))


def _characters(path: str) -> set[str]:
  try:
    return set(map(chr, FT2Font(path).get_charmap()))
  except (OSError, RuntimeError, ValueError):  # gone since it was listed, or damaged
    return set()
