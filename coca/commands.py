"""What command lines with a config file share."""

import sys

from absl import flags

LATE = "Configuration is not available because of an earlier failure to load: "


def parse_flags(argv) -> list[str]:
  """The command line, and the config file with it; a mistake is one line, not a traceback."""
  try:
    rest = flags.FLAGS(argv)
    # What went wrong with files while the config was loaded is raised where it is first looked at.
    dict(flags.FLAGS.config or {})
    return rest
  except OSError as e:
    sys.exit(f"error: --config: {str(e).strip().splitlines()[-1].strip().removeprefix(LATE)}")
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as e:
    lines = [line.strip() for line in str(e).replace("\\n", "\n").splitlines() if line.strip()]
    sys.exit(f"error: {lines[-1] if 'Traceback' in str(e) else ' '.join(lines)}")
