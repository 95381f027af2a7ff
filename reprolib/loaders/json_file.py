"""JSON that comes from outside: read whole, or refused in one sentence."""

from __future__ import annotations

import json
from typing import Any

from reprolib.errors import InputError


def read_json(content: bytes, name: object, **options: Any) -> Any:
    """Return the content of a JSON file; raises InputError, naming file and line, for what is not JSON.

    ``options`` are those of ``json.loads``.
    """
    try:
        return json.loads(content, **options)
    except json.JSONDecodeError as error:
        raise InputError(f"{name}, line {error.lineno}: this is not valid JSON ({error.msg})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: this is not UTF-8 text") from error
