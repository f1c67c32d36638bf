"""Check that a wheel holds the files of the package that git knows, the licences, and nothing else.

    python scripts/check_wheel.py WHEEL

The release does so before it publishes.
"""

import subprocess
import sys
import zipfile
from pathlib import Path

# Folders of the package with contents under a licence of their own.
PARTS = ("datasets/sample", "catalogue/imagenet")


def main(wheel: Path) -> str | None:
    """Return what is wrong, or None."""
    known = subprocess.run(["git", "ls-files", "-z", "branchwork"], capture_output=True, check=True, encoding="utf-8")
    expected = {name for name in known.stdout.split("\0") if name}
    held = set(zipfile.ZipFile(wheel).namelist())
    package = {name for name in held if name.startswith("branchwork/")}
    others = {name for name in held - package if ".dist-info/" not in name}
    licences = {name.partition(".dist-info/licenses/")[2] for name in held} - {""}
    faults = {
        "missing": expected - package,
        "unknown": package - expected | others,
        "licences missing": {"LICENSE", *(f"branchwork/{part}/README.md" for part in PARTS)} - licences,
    }
    found = [f"{wheel}: {kind}: {', '.join(sorted(names))}" for kind, names in faults.items() if names]
    if not found:
        print(f"{wheel}: {len(package)} files, {wheel.stat().st_size / 1e6:.1f} MB")
    return "\n".join(found) or None


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
