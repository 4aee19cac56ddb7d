"""Each query to the smallest model that will solve it.

``SuccessModel`` predicts from a query's text how likely each model is to solve it, all models
jointly, so that the differences between them, the *gains*, are predicted well; ``guarantee`` turns
labelled rows into a threshold on the gain that keeps a promise; ``Router`` decides.
"""

from .router import Decision, Router

__all__ = ["Decision", "Router"]
