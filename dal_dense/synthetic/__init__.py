"""Made-up data for the demo and the tests: CT phantoms and driving frames, seeded, with exact truth.

Nothing here stands in for real images in a benchmark: these sets exist so that the whole loop runs
in minutes on any machine. Every case has a random stream of its own, so case 3 is the same
whether 5 or 500 are made, on one process or on many.
"""

from __future__ import annotations

from dal_dense.synthetic.ct import CT_CLASSES, ensure_ct, write_ct
from dal_dense.synthetic.driving import DRIVING_CLASSES, ensure_driving, write_driving

__all__ = ["CT_CLASSES", "DRIVING_CLASSES", "ensure_ct", "ensure_driving", "write_ct", "write_driving"]
