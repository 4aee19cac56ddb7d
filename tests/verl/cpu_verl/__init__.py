"""What the unmodified verl needs to run on a machine without an accelerator; for tests only.

Loaded by ``VERL_USE_EXTERNAL_MODULES=cpu_verl`` with ``VERL_PLATFORM=cpu``, through verl's own
registries.
"""

import os

if os.environ.get("VERL_PLATFORM") == "cpu":
    from . import platform

    platform.register()
