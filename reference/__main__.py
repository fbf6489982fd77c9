"""`make reference`: write the pages."""

from __future__ import annotations

import sys

from reference.pages import PAGES, problems, stale

__all__ = ["main"]


def main() -> int:
    """Write each page that is not as the code has it; return 1 if words are missing."""
    if missing := problems():
        print("\n".join(["The reference lacks words:", *missing]), file=sys.stderr)
        return 1
    for path in stale():
        path.parent.mkdir(exist_ok=True)
        path.write_text(PAGES[path](), encoding="utf-8")
        print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
