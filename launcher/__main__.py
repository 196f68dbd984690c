"""The command `xlpretrain` from a source tree that is not installed: python -m launcher"""

from __future__ import annotations

from launcher.cli.main import main

if __name__ == "__main__":
    main()
