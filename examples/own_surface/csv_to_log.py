"""Turn the four CSV files into a log: a folder of Parquet with the column types of the README.

`python csv_to_log.py CSV_FOLDER LOG_FOLDER`. Adapt the types to your own columns: numbers are
float64, categories are strings, sets are lists of strings, times are int64 in ms since 1970.
"""

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv
import pyarrow.parquet as pq

TYPES = {"ts_ms": pa.int64(), "price": pa.float64()}
LISTS = ("candidates",)


def main(source: Path, log: Path) -> None:
    """Convert every table; a column without a type of its own holds strings."""
    log.mkdir()
    for path in sorted(source.glob("*.csv")):
        with path.open() as file:
            columns = file.readline().strip().split(",")
        types = {name: TYPES.get(name, pa.string()) for name in columns}
        table = pcsv.read_csv(path, convert_options=pcsv.ConvertOptions(column_types=types))
        for name in set(LISTS) & set(columns):
            position = columns.index(name)
            table = table.set_column(position, name, pc.split_pattern(table[name], "|"))
        pq.write_table(table, log / f"{path.stem}.parquet")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
