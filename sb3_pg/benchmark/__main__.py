"""Entry point of ``python -m sb3_pg.benchmark``."""

from sb3_pg.benchmark.cli import main

if __name__ == "__main__":
    main()
