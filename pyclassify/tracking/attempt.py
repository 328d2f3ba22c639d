"""What a run can do without must not end it."""

import warnings
from collections.abc import Callable
from typing import Any

from pyclassify.utils.launcher import is_rank_zero
from pyclassify.utils.masking import mask


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
        if is_rank_zero():
            reason = mask(f"{type(error).__name__}: {error}")
            warnings.warn(f"{what} can't be made ({reason}); the run goes on without", stacklevel=2)
        return None
