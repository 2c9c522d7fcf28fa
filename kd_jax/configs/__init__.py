"""The experiments of a checkout lie in configs/ at its top; a wheel holds those files here, in place of this one."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

__path__ = [str(Path(__file__).parents[2] / "configs")]

if TYPE_CHECKING:  # type checkers do not follow __path__

    def __getattr__(name: str) -> Any: ...
