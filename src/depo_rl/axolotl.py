"""The short way in for axolotl.

    plugins: [depo_rl.axolotl.DEPOPlugin]
    depo: {method: depo+}

The same names as in ``depo_rl.engines.axolotl``. Importing this imports axolotl, TRL and torch;
``import depo_rl`` does not.
"""

from .engines.axolotl.plugin import DEPOArgs, DEPOPlugin
from .engines.trl.config import DEPOSettings

__all__ = ["DEPOArgs", "DEPOPlugin", "DEPOSettings"]
