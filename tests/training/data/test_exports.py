"""Exports as spreadsheets, analytics tools and databases write them, beside the true values."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from training.__main__ import app

PEOPLE, ITEMS, LISTS, SIZE = 40, 60, 200, 5
NAMES = ["Müller", "Straße", "Käse", "Brød", "Garçon", "Ölmühle"]


class Export:
    """Rows that are exported in some form, and what is true of them."""

    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        user = np.repeat(rng.integers(0, PEOPLE, LISTS), SIZE)
        item = np.concatenate([rng.choice(ITEMS, SIZE, replace=False) for _ in range(LISTS)])
        at = pd.Timestamp("2026-03-01") + pd.to_timedelta(np.repeat(np.arange(LISTS) * 7, SIZE), "min")
        self.price = np.round(rng.lognormal(3, 1.5, ITEMS), 2)
        self.price[:2] = 1234.5, 12.3
        bought = rng.random(LISTS * SIZE) < 0.3
        self.paid = np.where(bought, np.round(self.price[item] * 0.9, 2), np.nan)
        self.bought, self.item = bought, item
        columns = {"user": [f"u{i}" for i in user], "item": [f"i{i}" for i in item], "at": at.astype(str)}
        self.rows = pd.DataFrame(columns | {"bought": bought.astype(int), "price": self.price[item]})

    def with_prices(self, write, share=1.0, column="price"):
        """Return the rows with each price written so, in a share of the items."""
        few = self.item % 20 < share * 20
        pairs = zip(self.price[self.item], few, strict=True)
        return self.rows.assign(**{column: [write(p) if some else f"{p:.2f}" for p, some in pairs]})


def grouped(mark, thousands):
    return lambda p: f"{p:,.2f}".translate(str.maketrans({",": thousands, ".": mark}))


def around(before, form, after=""):
    return lambda p: f"{before}{form(p)}{after}"


POINT, COMMA = grouped(".", ","), grouped(",", ".")
PLAIN = "{:.2f}".format
GERMAN = lambda p: PLAIN(p).replace(".", ",")  # noqa: E731


@pytest.fixture(scope="module")
def export():
    return Export()


def imported(folder, rows, *more, encoding="utf-8", sep=",", raw=None):
    path = folder / "rows.csv"
    path.write_bytes(raw if raw is not None else rows.to_csv(index=False, sep=sep).encode(encoding))
    given = [
        "import",
        "csv",
        "--source",
        path,
        "--out",
        folder / "log",
        "--viewer",
        "user",
        "--candidate",
        "item",
    ]
    given += ["--time", "at", "--event", "bought", *more]
    return CliRunner().invoke(app, [*map(str, given)])


def prices(folder):
    table = pq.read_table(folder / "log" / "candidates.parquet").to_pandas().drop_duplicates("id")
    return table.set_index("id")["price"]


def warnings(done):
    return [line for line in done.stdout.splitlines() if line.startswith("warning: 'price'")]


# How prices are written, the share of items that have it so, and the separator of columns.
READ = {
    "euros": (around("", PLAIN, " €"), 1, ","),
    "euros in a twentieth": (around("", PLAIN, " €"), 0.05, ","),
    "dollars and thousands": (around("$", POINT), 1, ","),
    "thousands in a twentieth": (POINT, 0.05, ","),
    "decimal commas": (GERMAN, 1, ";"),
    "German amounts": (around("", COMMA, " €"), 1, ";"),
    "French amounts": (around("", grouped(",", "\u202f"), "\u00a0€"), 1, "\t"),
    "Swiss amounts": (around("CHF ", grouped(".", "’")), 1, "|"),
    "codes of a currency": (around("", COMMA, " EUR"), 1, ","),
    "crowns": (around("", grouped(",", " "), " kr"), 1, ";"),
    "tabs": (PLAIN, 1, "\t"),
}


@pytest.mark.parametrize("case", READ)
def test_prices_are_read_as_they_were_meant(export, tmp_path, case):
    write, share, sep = READ[case]
    done = imported(tmp_path, export.with_prices(write, share), sep=sep)
    assert done.exit_code == 0, done.stderr
    true = pd.Series(export.price, [f"i{i}" for i in range(ITEMS)])
    found = prices(tmp_path)
    assert found.notna().all()
    assert np.abs(found.astype(float) - true.loc[found.index]).max() < 0.006
    assert warnings(done) == []


# How prices are written, what a person is told, and the option that answers.
ASKED = {
    "two currencies": (lambda p: f"{p:.2f} {'€' if p < 20 else '$'}", "several units, such as '$', '€'"),
    "some in thousands": (lambda p: f"{p / 1000:.5f}k" if p > 50 else f"{p:.2f}", "several units"),
    "a tenth with commas": (
        lambda p: f"{p:.2f}".replace(".", "," if p < 8 else "."),
        "no numbers as the others are",
    ),
    "whole thousands": (lambda p: f"{int(p) + 1000:,}", "may be a point or a comma"),
}


@pytest.mark.parametrize("case", ASKED)
def test_prices_that_leave_a_doubt_are_asked_about_and_are_no_category(export, tmp_path, case):
    write, told = ASKED[case]
    done = imported(tmp_path, export.with_prices(write))
    assert done.exit_code == 0, done.stderr
    (warning,) = warnings(done)
    assert told in warning
    assert "price" not in pq.read_schema(tmp_path / "log" / "candidates.parquet").names


def test_a_decimal_mark_settles_what_thousands_are(export, tmp_path):
    done = imported(tmp_path, export.with_prices(lambda p: f"{int(p) + 1000:,}"), "--decimal", ".")
    assert (done.exit_code, warnings(done)) == (0, [])
    assert prices(tmp_path).min() >= 1000


def test_thousands_with_points_beside_decimal_commas_are_told(export, tmp_path):
    rows = export.with_prices(GERMAN).assign(price_b=[f"{1.001 + i % 60:.3f}" for i in export.item])
    done = imported(tmp_path, rows, sep=";")
    assert "'price_b' has numbers with three decimals" in done.stdout
    (tmp_path / "log").rename(tmp_path / "first")
    assert imported(tmp_path, rows, "--decimal", ",", sep=";").exit_code == 0
    table = pq.read_table(tmp_path / "log" / "candidates.parquet")
    assert table["price_b"].to_pandas().min() >= 1001


def test_words_among_numbers_are_missing_values_and_told_with_their_share(export, tmp_path):
    rows = export.rows.assign(
        price=[("n/k" if i % 20 == 3 else f"{export.price[i]:.2f} €") for i in export.item]
    )
    done = imported(tmp_path, rows)
    (warning,) = warnings(done)
    assert "'n/k', " in warning
    assert "is read as missing" in warning
    assert prices(tmp_path).isna().sum() == 3


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-8-sig"])
def test_names_are_read_in_their_encoding_or_refused_with_it(export, tmp_path, encoding):
    rows = export.rows.assign(maker=[NAMES[i % len(NAMES)] for i in export.item])
    done = imported(tmp_path, rows, encoding=encoding, sep=";")
    if encoding == "cp1252":
        assert done.exit_code == 2
        assert "'maker', row " in done.stderr
        assert "--encoding cp1252" in done.stderr
        assert not (tmp_path / "log").exists()
        done = imported(tmp_path, rows, "--encoding", encoding, encoding=encoding, sep=";")
    assert done.exit_code == 0, done.stderr
    makers = pq.read_table(tmp_path / "log" / "candidates.parquet")["maker"].to_pylist()
    assert set(makers) == set(NAMES)
    assert "are separated by semicolons" in done.stdout


def test_utf_8_that_is_read_in_another_encoding_is_doubted(export, tmp_path):
    rows = export.rows.assign(maker="Müller")
    done = imported(tmp_path, rows, "--encoding", "cp1252")
    assert "looks like UTF-8; leave --encoding out" in done.stdout + done.stderr


def test_local_times_are_read_by_their_format_and_said_to_be_utc(export, tmp_path):
    rows = export.rows.assign(at=pd.to_datetime(export.rows["at"]).dt.strftime("%d.%m.%Y %H:%M"))
    done = imported(tmp_path, rows)
    assert done.exit_code == 2
    assert "--time-format '%d.%m.%Y %H:%M'" in done.stderr
    done = imported(tmp_path, rows, "--time-format", "%d.%m.%Y %H:%M")
    assert done.exit_code == 0, done.stderr
    assert "name no zone: they are read as UTC" in done.stdout
    times = pq.read_table(tmp_path / "log" / "exposures.parquet")["ts_ms"].to_pylist()
    assert times[0] == pd.Timestamp("2026-03-01", tz="UTC").value // 10**6
    (tmp_path / "log").rename(tmp_path / "first")
    wrong = imported(tmp_path, rows, "--time-format", "%Y/%m/%d")
    assert "is not written as --time-format %Y/%m/%d" in wrong.stderr


# Whole exports that go wrong elsewhere: what is done with the text of the file, and what is told.
REFUSED = {
    "rounded ids": (lambda text: text.replace("i7,", "4.00000E+12,"), "export ids as text"),
    "a lone header": (lambda text: text.split("\n")[0] + "\n", "has no rows"),
    "a totals line": (lambda text: text + ",,2026-03-02 00:00:00,0,99999\n", "every row needs a value"),
    "a header twice": (lambda text: text + text.split("\n")[0] + "\n", "holds string, such as"),
    "spaces in the header": (lambda text: text.replace("user,", "user ,", 1), "of the file: 'user ', 'item'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_export_that_cannot_be_right_is_refused_with_its_remedy(export, tmp_path, case):
    change, told = REFUSED[case]
    done = imported(tmp_path, None, raw=change(export.rows.to_csv(index=False)).encode())
    assert done.exit_code == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "sep=;\n" + text.replace(",", ";"),
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("\n", "\r"),
        lambda text: text.replace("\n", "\n\n"),
        lambda text: "\n".join('"' + line.replace(",", '","') + '"' for line in text.split("\n") if line),
    ],
    ids=["a line for the separator", "CRLF", "CR", "empty lines", "quotes"],
)
def test_lines_are_read_as_spreadsheets_write_them(export, tmp_path, change):
    done = imported(tmp_path, None, raw=change(export.rows.to_csv(index=False)).encode())
    assert done.exit_code == 0, done.stderr
    true = pd.Series(export.price, [f"i{i}" for i in range(ITEMS)])
    found = prices(tmp_path)
    assert np.abs(found.astype(float) - true.loc[found.index]).max() < 0.006


def test_a_price_in_both_files_is_a_field_too(export, tmp_path):
    acts = export.rows[export.bought]
    acts.to_csv(tmp_path / "acts.csv", index=False)
    rows = export.rows.drop(columns="bought")
    done = imported(tmp_path, rows, "--events", tmp_path / "acts.csv", "--value", "bought=price")
    assert done.exit_code == 0, done.stderr
    assert prices(tmp_path).notna().all()


@pytest.mark.parametrize(
    "cells", [("01067", "20095"), ("SKU-001", "SKU-002"), ("12 A", "14 B"), ("t0", "t1"), ("1st", "2nd")]
)
def test_codes_stay_categories(export, tmp_path, cells):
    done = imported(
        tmp_path,
        export.rows.assign(code=[cells[i % 2] for i in export.item], code_b="n/k"),
        "--category",
        "code",
    )
    assert done.exit_code == 0, done.stderr
    (tmp_path / "log").rename(tmp_path / "first")
    done = imported(
        tmp_path, export.rows.assign(code=["n/k" if i == 9 else cells[i % 2] for i in export.item])
    )
    codes = pq.read_table(tmp_path / "log" / "candidates.parquet")["code"].to_pylist()
    assert {*codes} - {None, "n/k"} == {*cells}


def test_dates_as_spreadsheets_write_them_are_asked_about(export, tmp_path):
    done = imported(tmp_path, export.rows.assign(posted=[f"{1 + i % 28:02}.03.2025" for i in export.item]))
    assert "warning: 'posted': its values look like dates" in done.stdout
    assert "posted" not in pq.read_schema(tmp_path / "log" / "candidates.parquet").names


def test_a_few_events_that_join_nothing_are_told_with_examples(export, tmp_path):
    acts = export.rows[export.bought].assign(
        user=lambda rows: ["lost" if i % 25 == 0 else u for i, u in enumerate(rows["user"])]
    )
    acts[["user", "item", "at", "bought"]].to_csv(tmp_path / "acts.csv", index=False)
    done = imported(tmp_path, export.rows.drop(columns="bought"), "--events", tmp_path / "acts.csv")
    assert done.exit_code == 0, done.stderr
    assert "warning: only 96.0%" in done.stderr
    assert "'lost'" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("ja", "nein"),
        ("WAHR", "FALSCH"),
        ("oui", "non"),
        ("yes", "no"),
        ("Y", "N"),
        ("TRUE", "FALSE"),
        ("t", "f"),
        ("x", ""),
    ],
)
def test_yes_and_no_say_whether_an_event_happened(export, tmp_path, words):
    rows = export.rows.assign(bought=np.where(export.bought, *words))
    done = imported(tmp_path, rows)
    assert done.exit_code == 0, done.stderr
    events = pq.read_table(tmp_path / "log" / "events.parquet")["kind"].to_pylist()
    kind = "x" if words[0] == "x" else "bought"
    assert events == [kind] * int(export.bought.sum())


@pytest.mark.parametrize("in_two", [False, True])
def test_what_was_paid_is_asked_about_and_becomes_the_amount(export, tmp_path, in_two):
    amounts = ["" if np.isnan(paid) else f"{paid:.2f} €".replace(".", ",") for paid in export.paid]
    rows = export.rows.assign(paid=amounts, note="n")
    more = []
    if in_two:
        acts = rows.loc[export.bought, ["user", "item", "at", "bought", "paid", "note"]]
        acts.to_csv(tmp_path / "acts.csv", index=False, sep=";")
        rows, more = rows.drop(columns=["bought", "paid", "note"]), ["--events", tmp_path / "acts.csv"]
    asked = imported(tmp_path, rows, *more)
    assert asked.exit_code == 0, asked.stderr
    assert "repeat with --value bought=paid" in asked.stdout
    unread = [line for line in asked.stdout.splitlines() if "no field is read from --events" in line]
    assert not in_two or unread[-1].startswith(f"{tmp_path / 'acts.csv'}: note")
    (tmp_path / "log").rename(tmp_path / "first")
    done = imported(tmp_path, rows, *more, "--value", "bought=paid")
    assert done.exit_code == 0, done.stderr
    assert "--value bought=paid" not in done.stdout
    assert f"in all {np.nansum(export.paid):,.2f}" in done.stdout
    values = pq.read_table(tmp_path / "log" / "events.parquet")["value"].to_pylist()
    assert sorted(values) == pytest.approx(np.sort(export.paid[export.bought]).tolist())


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--value", "bougt=price"], "did you mean 'bought'?"),
        (["--value", "bought"], "such as buy=paid"),
        (["--value", "bought=pric"], "'pric' is not a column of the file"),
        (["--encoding", "latin-99"], "'latin-99' is unknown"),
        (["--delimiter", ";;"], "must be one ASCII character"),
        (["--decimal", "x"], "must be . or ,"),
        (["--field", "pric=viewer"], "did you mean 'price'?"),
        (["--field", "price=viewers"], "did you mean 'viewer'?"),
        (["--field", "price"], "such as age=viewer"),
    ],
)
def test_a_mistake_in_an_option_is_named_with_its_remedy(export, tmp_path, more, told):
    done = imported(tmp_path, export.rows, *more)
    assert done.exit_code == 2
    assert told in done.stderr
    assert not (tmp_path / "log").exists()


def test_a_person_says_whose_field_a_column_is(export, tmp_path):
    """Nearly all viewers have one list, and the plans of the others have changed."""
    lists = np.arange(LISTS).repeat(SIZE)
    rows = export.rows.assign(user=[f"u{i % 192}" for i in lists], plan=[f"plan {i % 5}" for i in lists])
    done = imported(tmp_path, rows)
    assert re.search("^plan +context ", done.stdout, re.MULTILINE)
    assert "only 4% of the viewers have two lists or more" in done.stdout
    (tmp_path / "log").rename(tmp_path / "first")
    done = imported(tmp_path, rows, "--field", "plan=viewer")
    assert re.search("^plan +viewers ", done.stdout, re.MULTILINE)
    assert "--field" not in done.stdout
