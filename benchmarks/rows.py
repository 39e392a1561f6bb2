"""Finished runs, one a row of a CSV file: a script that is started again goes on where it stopped."""

import csv
from pathlib import Path
from typing import Any


class Rows:
    """A CSV file of runs.

    :param file: the file; it is made with the first run
    :param columns: of the file
    """

    def __init__(self, file: Path, *columns: str):
        self.file, self.columns = file, columns

    def read(self) -> list[dict[str, str]]:
        """The finished runs."""
        if not self.file.exists():
            return []
        with self.file.open(newline="") as file:
            return list(csv.DictReader(file))

    def add(self, *row: Any) -> None:
        """Keep a run, and say so."""
        is_new = not self.file.exists()
        with self.file.open("a", newline="") as file:
            writer = csv.writer(file)
            writer.writerows([self.columns, row] if is_new else [row])
        print(*row, flush=True)
