"""The patches of `inspect --fix`: mends as unified diffs beside the files, which stay as they are."""

import difflib
import os
from collections.abc import Sequence
from pathlib import Path

from branchwork.errors import NetError
from branchwork.files import write_whole
from branchwork.graph.mend import Mend, Source
from branchwork.language import say

# The first line of a patch, which `git apply` and `patch` skip: what was not written here is not replaced.
_MARK = "Written by branchwork inspect --fix\n"


def write_patches(mends: Sequence[Mend]) -> str:
    """Write the patch `NAME.patch` beside each file that has mends, and return what they hold and how to apply them.

    Raises `NetError` if there is such a file that was not written here, or if it cannot be written.
    """
    if not mends:
        return say("No patch was written: no line of your file can be replaced safely. Follow the advice above.")
    texts = []
    for file in dict.fromkeys(mend.file for mend in mends):
        patch, source = Path(file).with_suffix(".patch"), Source(file)
        chosen = list({mend.line: mend for mend in mends if mend.file == file}.values())
        mark = _MARK.encode(source.encoding)
        if patch.exists() and not patch.read_bytes().startswith(mark):
            raise NetError("{patch} already exists, and --fix did not write it: move it away", patch=patch)
        write_whole(patch, mark + _diff(source, chosen), error=NetError)
        lines = "\n".join(
            f"  {mend.line}: {mend.before.strip()}\n  {' ' * len(str(mend.line))}→ {mend.after.strip()}"
            for mend in sorted(chosen, key=lambda mend: mend.line)
        )
        texts.append(
            say(
                "The fix is in {patch}:\n{lines}\nApply it in {folder}: git apply {name}, or patch -p1 < {name}. "
                "{file} itself is unchanged.",
                patch=patch,
                lines=lines,
                folder=patch.parent,
                name=patch.name,
                file=Path(file).name,
            )
        )
    return "\n".join(texts)


def _diff(source: Source, mends: Sequence[Mend]) -> bytes:
    """Return the unified diff, each line in the encoding of the file, and the names in that of the file system."""
    after = list(source.lines)
    for mend in mends:
        after[mend.line - 1] = after[mend.line - 1].replace(mend.before, mend.after)
    name = Path(source.file).name
    tab = "\t" if " " in name else ""  # ends a name that has spaces
    names, *lines = difflib.unified_diff(source.lines, after, f"a/{name}{tab}", f"b/{name}{tab}")
    whole = (line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines[1:])
    return os.fsencode(names + lines[0]) + "".join(whole).encode(source.encoding)
