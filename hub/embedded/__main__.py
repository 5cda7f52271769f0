"""`python -m hub.embedded`: have a LiveKit server binary, building it if need be; prints its path last."""

import sys

from hub.embedded.livekit_build import main

sys.exit(main())
