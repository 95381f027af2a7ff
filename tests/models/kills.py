"""Extractions that are killed, resumed, and done twice at a time; run as a process of its own, which forks.

``python -m tests.models.kills FOLDER`` prints what came of it as JSON. A killed process is a fork that sends itself
SIGKILL just before or just after the n-th file appears.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

BATCH = 5
FILES = 17  # 10 batches of 48 images, 5 of 24 texts, the description, and the whole
MOMENTS = [(0, "before"), (0, "after"), (7, "before"), (12, "after"), (15, "before"), (15, "after"), (16, "after")]


def main(folder: Path) -> dict[str, Any]:
    import torch

    from reprolib.loaders.store import map_arrays
    from reprolib.models import encoder, extract, families
    from reprolib.models.registry import find_model
    from tests.models.checkpoints import clip
    from tests.models.conftest import make_items

    torch.set_num_threads(1)
    items, original = make_items(), encoder.load_encoder
    encoder.load_encoder = lambda *given: replace(original(*given), batch=BATCH)
    (folder / "model").mkdir()
    clip(folder / "model")
    model = find_model(str(folder / "model"))
    cache = folder / "cache"

    def run(result: Path) -> None:
        batches = []
        for name in ("images", "texts"):
            function = getattr(families.Family, name)
            counted = lambda *given, function=function: batches.append(1) or function(*given)  # noqa: E731
            setattr(families.Family, name, counted)
        split = extract.embed(items, model)
        digest = hashlib.sha256(split.image.tobytes() + split.text.tobytes()).hexdigest()
        result.write_text(json.dumps({"computed": len(batches), "digest": digest}))

    def killed(moment: tuple[int, str]) -> None:
        number, seen, move = *moment, os.replace
        count = iter(range(FILES + 1))

        def counting(*given: Any) -> None:
            here = next(count) == number
            if here and seen == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            move(*given)
            if here:
                os.kill(os.getpid(), signal.SIGKILL)

        os.replace = counting
        extract.embed(items, model)

    def forked(function: Callable[[Any], None], argument: Any) -> int:
        child = os.fork()
        if not child:
            code = 1
            try:
                function(argument)
                code = 0
            finally:
                os._exit(code)
        return child

    def status(child: int) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    found = []
    for row, moment in enumerate([None, *MOMENTS]):
        os.environ["REPROLIB_CACHE"] = str(cache / str(row))
        end = status(forked(killed, moment)) if moment else None
        left = len(list((cache / str(row)).glob("embeddings/*.partial/*.safetensors")))
        result = folder / f"{row}.json"
        code = status(forked(run, result))
        entries = sorted(path.suffix for path in (cache / str(row) / "embeddings").iterdir())
        found.append(json.loads(result.read_text()) | {"end": end, "left": left, "code": code, "entries": entries})
    os.environ["REPROLIB_CACHE"] = str(cache / "together")
    children = [forked(run, folder / f"together {number}.json") for number in range(3)]
    codes = [status(child) for child in children]
    together = [json.loads((folder / f"together {number}.json").read_text()) for number in range(3)]
    entries = sorted((cache / "together" / "embeddings").iterdir())
    whole = [path for path in entries if path.suffix == ".safetensors"]
    assert all(map_arrays(path, path.stem) for path in whole)
    return {"alone": found, "together": together, "codes": codes, "entries": [path.suffix for path in entries]}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
