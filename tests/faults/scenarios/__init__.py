"""What can break, and what is promised then: one file a kind of fault."""

from __future__ import annotations

from tests.faults.drill.plan import Scenario
from tests.faults.scenarios.drained import DRAINED
from tests.faults.scenarios.files import FILES, HANDED_ON
from tests.faults.scenarios.forged import FORGED
from tests.faults.scenarios.frozen import FROZEN
from tests.faults.scenarios.half_open import HALF_OPEN
from tests.faults.scenarios.killed import ALTERNATING, KILLED
from tests.faults.scenarios.ordered import ORDERED
from tests.faults.scenarios.random_faults import RANDOM
from tests.faults.scenarios.redis_gone import REDIS_EMPTIED, REDIS_GONE
from tests.faults.scenarios.silent import SILENT
from tests.faults.scenarios.soak import SOAK

SCENARIOS: dict[str, Scenario] = {
    each.name: each
    for each in (
        KILLED,
        ALTERNATING,
        FROZEN,
        REDIS_GONE,
        REDIS_EMPTIED,
        HALF_OPEN,
        DRAINED,
        ORDERED,
        FORGED,
        SILENT,
        SOAK,
        HANDED_ON,
        FILES,
        RANDOM,
    )
}
