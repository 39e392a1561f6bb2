"""Entry point of ``python -m sb3_pg``."""

from sb3_pg.cli import main

if __name__ == "__main__":
    main()
