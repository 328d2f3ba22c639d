"""What a run can do without must not end it."""

from collections.abc import Callable
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_warn


def attempt(what: str, make: Callable[..., Any], *args: Any) -> Any:
    """Make something that a run can do without; a failure costs a warning and gives None.

    Args:
        what: Its name, for the warning.
        make: Makes it.
        args: What `make` is called with.
    """
    try:
        return make(*args)
    except Exception as error:
        rank_zero_warn(f"{what} can't be made ({error!r}); the run goes on without")
        return None
