"""How many examples Hypothesis tries.

``TREADLE_HYPOTHESIS_PROFILE=long`` tries a hundred times as many as the default profile, and other
ones each time.
"""

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "ci",
    max_examples=400,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.register_profile(
    "long",
    settings.get_profile("ci"),
    max_examples=40_000,
    derandomize=False,
    print_blob=True,
)
settings.load_profile(os.environ.get("TREADLE_HYPOTHESIS_PROFILE", "ci"))
