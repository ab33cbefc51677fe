"""What command lines with a config file share."""

import sys

from absl import flags


def parse_flags(argv) -> list[str]:
  """The command line, and the config file with it; a mistake is one line, not a traceback."""
  try:
    return flags.FLAGS(argv)
  except (flags.Error, AttributeError, KeyError, OSError, TypeError, ValueError) as e:
    lines = [line.strip() for line in str(e).replace("\\n", "\n").splitlines() if line.strip()]
    sys.exit(f"error: {lines[-1] if 'Traceback' in str(e) else ' '.join(lines)}")
