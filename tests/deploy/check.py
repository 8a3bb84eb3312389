"""What all checks have in common: where things are, how a check is named and counted."""

import pathlib
import subprocess
import sys
import time
import traceback

ROOT = pathlib.Path(__file__).resolve().parents[2]
UPDATE = "--update" in sys.argv[1:]

CHECKS = []


def check(function):
    """Registers a check; its name is said in words."""
    CHECKS.append(function)
    return function


def run(*command, **options):
    """What a command prints; it fails with what it said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"
    return done.stdout


def current(path, text):
    """A file that is made from something else is as it would be made now."""
    path = ROOT / path
    if UPDATE:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert path.exists() and path.read_text() == text, f"{path.relative_to(ROOT)} is out of date: tests/deploy/run --update"


def main():
    """Runs all checks; the last line counts them."""
    failed = 0
    for function in CHECKS:
        begun = time.monotonic()
        try:
            function()
            said = "ok"
        except Exception as error:  # noqa: BLE001: whatever goes wrong in a check is its failure
            failed += 1
            said = "FAILED"
            if not isinstance(error, AssertionError):
                traceback.print_exc()
            print(error)
        print(f"{function.__module__}: {function.__name__.replace('_', ' ')} ... {said} ({time.monotonic() - begun:.1f} s)", flush=True)
    print(f"{len(CHECKS) - failed} passed, {failed} failed")
    return 1 if failed else 0
