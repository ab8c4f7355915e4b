"""`make soak`, or by hand: `PYTHONPATH=tests python -m soak --seed 7 --units 4000 --minutes 10`.

Prints the seed first, a line of progress while it goes on, and what is wrong at the end; writes a result file.
"""

from __future__ import annotations

import argparse
import json
import secrets
import shutil
import sys
import tempfile
import time
from pathlib import Path

from transformers.utils import logging as transformers_logging

from soak.plan import FULL
from soak.run import soak, undisturbed

_PLAIN_EVERY_S = 10.0


class _Teller:
    """One line that changes on a terminal, one every ten seconds elsewhere."""

    def __init__(self) -> None:
        self._said_at = 0.0

    def __call__(self, text: str) -> None:
        if sys.stdout.isatty():
            width = shutil.get_terminal_size().columns - 1
            sys.stdout.write(f"\r{text[:width]:<{width}}")
        elif time.monotonic() - self._said_at > _PLAIN_EVERY_S:
            self._said_at = time.monotonic()
            print(text, flush=True)


def main() -> int:
    """Run one soak for each seed; return 1 when something was wrong in the end."""
    parser = argparse.ArgumentParser(prog="python -m soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, nargs="+", help="what faults are drawn from; drawn itself by default")
    parser.add_argument("--units", type=int, default=FULL, help="images in all (default: %(default)s)")
    parser.add_argument("--minutes", type=float, help="make faults for so long at most (default: to the end)")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of results (default: %(default)s)")
    parser.add_argument("--keep", action="store_true", help="keep logs and models when all went well, too")
    parser.add_argument("--reference", type=Path, help="digests of the undisturbed run: read if there, else written")
    arguments = parser.parse_args()
    transformers_logging.disable_progress_bar()  # of the tiny models that are written first
    seeds = arguments.seed or [secrets.randbits(16)]
    print("seeds" if len(seeds) > 1 else "seed", *seeds, flush=True)
    folder = Path(tempfile.mkdtemp(prefix="farm-soak-"))
    arguments.out.mkdir(parents=True, exist_ok=True)
    say = _Teller()
    if arguments.reference and arguments.reference.exists():
        reference = json.loads(arguments.reference.read_text())
    else:
        reference = undisturbed(folder / "undisturbed", arguments.units, say)
        if arguments.reference:
            arguments.reference.write_text(json.dumps(reference))
    results = []
    for seed in seeds:
        result = soak(
            folder / str(seed),
            seed=seed,
            units=arguments.units,
            minutes=arguments.minutes,
            reference=reference,
            say=say,
        )
        results.append(result)
        path = arguments.out / f"soak-{seed}.json"
        path.write_text(json.dumps(result, indent=2) + "\n")
        print(
            f"\nseed {seed}: {result['units']} units, {result['faults']} faults in {result['mischief_s']:.0f} s, "
            f"{result['retries']} retries: {'all is right' if result['right'] else 'WRONG'}; {path}"
        )
        for wrong in result["wrong"]:
            print(f"  {wrong}")
    if all(result["right"] for result in results) and not arguments.keep:
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if all(result["right"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
