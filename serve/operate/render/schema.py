"""Check a launcher file with the code that `ray up` runs first."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
from typing import Any

from serve.contract.errors import TabrankError


def refuse_invalid(document: dict[str, Any]) -> None:
    """Raise TabrankError where the installed Ray would refuse the launcher file."""
    from jsonschema import ValidationError  # type: ignore[import-untyped]
    from ray.autoscaler._private.util import prepare_config, validate_config

    # Ray prints and logs the defaults that it fills in.
    output = io.StringIO()
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(output):
            validate_config(prepare_config(copy.deepcopy(document)))
    except ValidationError as error:
        place = ".".join(map(str, error.absolute_path)) or "the top"
        raise TabrankError(f"Ray refuses the launcher file at {place}: {error.message}") from None
    except (ValueError, RuntimeError, SystemExit) as error:
        raise TabrankError(f"Ray refuses the launcher file: {error}") from None
    finally:
        logging.disable(logging.NOTSET)
