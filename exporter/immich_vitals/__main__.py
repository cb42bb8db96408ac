"""`python -m immich_vitals` is the command `immich-vitals`."""

import sys

from immich_vitals.cli import main

sys.exit(main())
