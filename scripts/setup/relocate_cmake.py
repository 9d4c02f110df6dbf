"""Points the CMake files of the ROS 2 wheels to this interpreter.

The wheels' exported targets name the include and site-packages folders of the interpreter they
were built with (/opt/python/cp311-cp311/...). Building an interface package against them needs
the folders of the interpreter they were installed for. Run with that interpreter, once after an
installation; a second run changes nothing.
"""

import re
import sys
import sysconfig
from pathlib import Path

BUILDER_PREFIX = r"/opt/python/cp3\d+-cp3\d+"


def relocations() -> list[tuple[re.Pattern[str], str]]:
    """Pair each of the builder's folders with the same folder of the running interpreter."""
    return [
        (re.compile(BUILDER_PREFIX + r"/include/python3\.\d+"), sysconfig.get_path("include")),
        (
            re.compile(BUILDER_PREFIX + r"/lib/python3\.\d+/site-packages"),
            sysconfig.get_path("platlib"),
        ),
    ]


def relocate(path: Path) -> bool:
    """Rewrite one CMake file in place; return whether it changed."""
    text = path.read_text(encoding="utf-8")
    moved = text
    for pattern, replacement in relocations():
        # A function, since a backslash in a replacement string would be an escape.
        moved = pattern.sub(lambda _, folder=replacement: folder, moved)
    if moved == text:
        return False
    path.write_text(moved, encoding="utf-8")
    return True


def main() -> int:
    """Relocate every CMake file under this interpreter's share/ folder."""
    files = sorted((Path(sys.prefix) / "share").rglob("*.cmake"))
    changed = sum(relocate(path) for path in files)
    left = [path for path in files if re.search(BUILDER_PREFIX, path.read_text("utf-8"))]
    print(f"{changed} of {len(files)} CMake files relocated to {sys.prefix}")
    for path in left:
        print(f"error: {path} still names the interpreter of the wheel's builder", file=sys.stderr)
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
