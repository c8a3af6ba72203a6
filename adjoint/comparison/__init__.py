"""Ways to differentiate an iteration, put side by side."""

from .compare import compare_gradients as compare_gradients
from .iteration import Iteration as Iteration
from .table import Comparison as Comparison
from .table import Row as Row

__all__ = ["Comparison", "Iteration", "Row", "compare_gradients"]
