"""Bring the hooks into processes that start with this folder on PYTHONPATH.

``DAS_GPU_TEST_DEATHS`` names a file that says who dies, and where; see `tests.killing.plans`.
"""

from __future__ import annotations

import os
import sys

if "DAS_GPU_TEST_DEATHS" in os.environ:
    sys.path.append(os.environ["DAS_GPU_TEST_REPOSITORY"])
    from tests.killing import plans

    plans.obey(os.environ["DAS_GPU_TEST_DEATHS"])
