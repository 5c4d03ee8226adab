"""A file of measured rows: one JSON object a line, one line a model, each there as soon as it is measured."""

import json
import os

FIRST_GUESS_SECONDS = 30.0  # for a model, where nothing was measured yet
PEER_SECONDS = 45.0  # what a peer that compiles adds to it


def key(row):
    """What makes two rows the same measurement; rows of before there were devices are the CPU's."""
    return row["model"], row.get("device", "cpu"), row.get("dtype", "fp32")


class Rows:
    """The rows of a file, or of this run alone where path is None. A half-written last line is dropped."""

    def __init__(self, path=None):
        self._path = path
        self._rows = {}
        self._took = []
        if path is None:
            return
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                for line in file:
                    self._read(line)
        self._write()  # says at once that the file cannot be written

    def _read(self, line):
        try:
            row = json.loads(line)
            self._rows[key(row)] = row
        except (ValueError, KeyError, TypeError):
            return

    def get(self, model, device, dtype, batch=None):
        """The row of that measurement, or None; one of another batch is another measurement."""
        row = self._rows.get((model, device, dtype))
        return row if row and batch in (None, row.get("batch")) else None

    def add(self, row):
        """Keeps a row, in place of one of the same measurement, and writes it."""
        self._rows[key(row)] = row
        if "seconds" in row:
            self._took.append(row["seconds"])
        if self._path is not None:
            self._write()

    def _write(self):
        beside = f"{self._path}.{os.getpid()}"
        with open(beside, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in self._rows.values())
        os.replace(beside, self._path)

    def expected_seconds(self, model, device, dtype, peers):
        """How long measuring a model will take: as long as last time, else as the longest of this run, else a guess."""
        before = self.get(model, device, dtype)
        if before and "seconds" in before and "error" not in before:
            return before["seconds"]
        return max(self._took) if self._took else FIRST_GUESS_SECONDS + PEER_SECONDS * peers
