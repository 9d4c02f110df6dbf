"""``python -m edge_atp.cli``: the same as ``edge-atp``."""

import sys

from edge_atp.cli import main

sys.exit(main())
