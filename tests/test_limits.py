"""Tests of the table of limits: each row has the code's value, an existing test and a metric."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest
import yaml

from serve.config import diagnoses
from serve.config.settings import AppArgs
from serve.contract import messages
from serve.contract import rankings as api
from serve.contract import records as contract_records
from serve.contract.metric_catalog import METRICS
from serve.features.kinds.gauge import NEWEST, PLACES
from serve.http import auth, request_headers
from serve.http import body_reader as bodies
from serve.ingest import expiry, intake, quality
from serve.ingest import writer as ingest
from serve.log import compaction, retention, snapshots, stream
from serve.log import events as records
from serve.log import segments as log_segments
from serve.operate.host import environment
from serve.ranking import exposure_buffer, reasons, record_intake
from serve.stores.lmdb_environment import MAP_SIZE

ROOT = Path(__file__).parents[1]
SHIPPED = yaml.safe_load((ROOT / "cluster.yaml").read_text())["applications"][0]["deployments"][0]
EDGE, LIVE, INGEST = "serve/http/test_app.py", "serve/ingest/test_live.py", "serve/ingest/test_writer.py"
FIELDS, BUFFER = "serve/features/test_field_limits.py", "serve/ranking/test_exposure_buffer.py"


def mib(num_bytes: int) -> str:
    units = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))
    return next(f"{num_bytes // size} {unit}" for size, unit in units if num_bytes >= size)


# For each row: the values in the code that the row contains, and the test that exceeds the limit.
ROWS: dict[str, tuple[tuple[object, ...], str]] = {
    "time for all headers, `serve up`": (
        re.findall(r"http-request (\d+)s", environment.ONE_MACHINE["RAY_SERVE_HAPROXY_RETRY_ON"]),
        "serve/http/test_exposure.py::test_five_hundred_slow_clients_hold_no_slots_and_delay_no_others",
    ),
    "silence in the headers, rendered": (
        (environment.FAST["RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S"],),
        "serve/operate/host/test_environment.py::test_ray_reads_every_setting_of_its_own",
    ),
    "an answer that nobody reads": (
        (environment.FAST["RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S"],),
        "serve/operate/host/test_environment.py::test_ray_reads_every_setting_of_its_own",
    ),
    "an idle connection": (
        (90,),
        "serve/operate/diff/test_diff.py::test_defaults_that_are_written_out_are_no_change",
    ),
    "headers": (
        (request_headers.MAX_HEADERS, mib(request_headers.MAX_HEADER_BYTES)),
        f"{EDGE}::test_what_cannot_be_taken_is_refused_as_a_problem",
    ),
    "body of a ranking": (
        (mib(api.MAX_BODY_BYTES),),
        f"{EDGE}::test_what_cannot_be_taken_is_refused_as_a_problem",
    ),
    "body of events": (
        (mib(contract_records.MAX_EVENTS_BODY_BYTES),),
        f"{LIVE}::test_a_batch_beyond_a_mebibyte_is_refused_whole",
    ),
    "time for a body": (
        (bodies.BODY_S,),
        "serve/http/test_body_reader.py::test_a_slow_body_is_cut_off_and_the_others_go_on",
    ),
    "the rest of a body that is too large": (
        (mib(bodies.LINGER_BYTES), bodies.BODY_S),
        "serve/http/test_body_reader.py::test_the_rest_of_a_refused_body_is_dropped_within_limits",
    ),
    "bodies under way in a replica": (
        (bodies.MAX_WAITING, mib(bodies.MAX_WAITING_BYTES)),
        "serve/http/test_body_reader.py::test_what_waits_is_bounded_in_bytes",
    ),
    "requests under way in a replica": (
        (SHIPPED["max_ongoing_requests"],),
        "serve/runtime/test_fast_path.py::test_without_a_free_slot_a_request_is_refused_unread_and_counted",
    ),
    "requests of a key": (
        (f"candidates / {auth.ITEMS_A_REQUEST}", f"records / {auth.ITEMS_A_REQUEST}"),
        "serve/http/test_auth.py::test_a_keys_rate_is_divided_by_the_replicas_with_a_burst_of_1_s",
    ),
    "nesting of JSON": ((), "serve/http/test_hostile.py::test_deep_and_long_bodies_are_refused_in_few_words"),
    "a key of one JSON object": ((), f"{EDGE}::test_of_a_key_that_comes_twice_the_last_value_counts"),
    "candidates of a ranking": (
        (api.MAX_CANDIDATES,),
        f"{EDGE}::test_what_means_nothing_is_refused_with_a_pointer",
    ),
    "records of a batch": (
        (contract_records.MAX_RECORDS,),
        f"{LIVE}::test_a_batch_of_too_many_records_is_refused_whole",
    ),
    "a record's JSON": (
        (mib(contract_records.MAX_RECORD_BYTES),),
        f"{FIELDS}::test_a_record_has_a_limit_in_bytes",
    ),
    "an id": ((api.MAX_ID_CHARACTERS,), f"{EDGE}::test_what_means_nothing_is_refused_with_a_pointer"),
    "a string of a field": (
        (api.MAX_FIELD_CHARACTERS,),
        f"{FIELDS}::test_a_record_whose_fields_are_too_long_is_rejected_alone",
    ),
    "members of a set": (
        (api.MAX_SET_MEMBERS,),
        f"{FIELDS}::test_a_ranking_whose_fields_are_too_long_is_refused_with_the_limit",
    ),
    "a number": (("1e30",), f"{EDGE}::test_what_means_nothing_is_refused_with_a_pointer"),
    "a time": (("2^53",), f"{EDGE}::test_what_means_nothing_is_refused_with_a_pointer"),
    "a client's text in a message or log line": (
        (messages.MAX_QUOTED,),
        f"{EDGE}::test_echoed_input_is_short_and_without_control_characters",
    ),
    "time to a ranking's scores": ((), f"{EDGE}::test_past_its_deadline_a_request_gets_the_popular_order"),
    "batches under way": (
        (),
        "serve/ranking/test_batcher.py::test_no_more_batches_are_under_way_than_may_be_in_flight",
    ),
    "rows in a call of Scorer": (
        (mib(records.MAX_CALL_BYTES),),
        f"{EDGE}::test_a_call_of_the_scorer_is_capped_in_bytes",
    ),
    "a single ranking in a call of Scorer": (
        (mib(records.MAX_CALL_BYTES),),
        f"{EDGE}::test_a_call_of_the_scorer_is_capped_in_bytes",
    ),
    "candidates with reasons (`explain`)": (
        (reasons.MAX_EXPLAINED, reasons.MAX_ROWS, f"{reasons.MAX_BYTES / 2**20:g} MiB"),
        "serve/ranking/test_reasons.py::test_many_candidates_or_wide_rows_leave_the_last_unexplained",
    ),
    "exposures in a call of Ingest": (
        (exposure_buffer.MAX_SENT, mib(records.MAX_CALL_BYTES)),
        f"{BUFFER}::test_a_call_is_capped_in_bytes_and_in_exposures",
    ),
    "a call that Ray refuses for its size": (
        (),
        f"{BUFFER}::test_a_call_too_large_is_halved_and_a_single_exposure_dropped",
    ),
    "one exposure": (
        (mib(records.MAX_CALL_BYTES),),
        f"{BUFFER}::test_an_exposure_larger_than_a_call_is_never_sent_and_counted",
    ),
    "exposures of a replica that wait for Ingest": (
        (f"{exposure_buffer.CALM:.0%}".replace("%", " %"), exposure_buffer.MIN_HELD),
        f"{BUFFER}::test_beyond_the_ceiling_of_ingest_an_even_sample_is_kept_and_says_its_rate",
    ),
    "the exposure buffer of a replica": (
        (exposure_buffer.MAX_HELD, mib(exposure_buffer.MAX_HELD_BYTES)),
        f"{BUFFER}::test_the_held_bytes_are_bounded_until_they_are_sent",
    ),
    "time of a call with exposures": (
        (exposure_buffer.SEND_TIMEOUT_S,),
        f"{BUFFER}::test_a_call_that_is_never_answered_is_given_up_and_sent_again",
    ),
    "records of a key under way to Ingest, in a replica": (
        (record_intake.MAX_UNDER_WAY,),
        f"{EDGE}::test_a_key_that_floods_ingest_is_refused_and_the_others_go_on",
    ),
    "events in a call of Ingest": (
        (mib(2 * contract_records.MAX_EVENTS_BODY_BYTES),),
        f"{FIELDS}::test_whatever_fits_a_body_of_records_fits_a_call_of_ingest",
    ),
    "time of a call with events": (
        (record_intake.TAKE_S,),
        f"{LIVE}::test_events_that_ingest_is_slow_to_take_are_answered_503",
    ),
    "records waiting for a commit": (
        (ingest.MAX_WAITING, mib(ingest.MAX_WAITING_BYTES)),
        f"{INGEST}::test_more_bytes_than_may_wait_are_refused_at_once",
    ),
    "one commit": (
        (mib(intake.COMMIT_BYTES), mib(intake.COMMIT_ROW_BYTES)),
        f"{INGEST}::test_what_has_gathered_is_committed_in_pieces_of_bounded_size",
    ),
    "candidates of the live table": (
        (intake.MAX_LIVE, mib(intake.MAX_LIVE_BYTES)),
        f"{INGEST}::test_a_live_table_holds_a_bounded_number_of_bytes",
    ),
    "ended candidates removed in a commit": (
        (intake.MAX_ENDED,),
        f"{LIVE}::test_a_commit_removes_a_bounded_number_of_ended_candidates",
    ),
    "ids by which a repeat is known": (
        (intake.WINDOW,),
        f"{INGEST}::test_event_ids_survive_a_restart_after_any_number_of_rankings",
    ),
    "the store": (
        (mib(MAP_SIZE), AppArgs("").keep_viewers_days),
        "serve/stores/test_lmdb.py::test_a_full_store_says_so_and_is_opened_afresh",
    ),
    "values of candidates' fields that are counted and that no candidate has": (
        (expiry.MAX_VALUES,),
        "serve/features/test_kinds_live.py::test_with_too_many_values_at_rest_the_oldest_are_forgotten_before_their_time",
    ),
    "a viewer's events of a kind at a candidate": (
        (intake.MAX_REPEATS, intake.REPEATS_MS // 60_000, intake.MAX_ARRIVED),
        f"{INGEST}::test_one_viewer_moves_a_count_by_twenty_in_ten_minutes",
    ),
    "candidates at which a gauge counts a viewer": (
        (PLACES,),
        "serve/features/test_presences.py::test_a_viewer_counts_at_the_last_candidates_only",
    ),
    "viewers at a candidate whom `friends` knows": (
        (NEWEST,),
        "serve/features/test_presences.py::test_a_candidate_knows_the_64_who_came_last",
    ),
    "rankings that wait for labels": (
        (mib(quality.MAX_BYTES),),
        "serve/ingest/test_quality.py::"
        "test_what_waits_is_bounded_in_bytes_and_what_is_left_out_is_counted_without_bias",
    ),
    "the window of an outcome in live quality, that of a stay with its cap": (
        (quality.MAX_WITHIN_MS / 3_600_000,),
        "serve/ingest/test_quality.py::test_each_outcome_counts_once_its_own_window_has_closed",
    ),
    "removals by which a late record is known": (
        (intake.WINDOW,),
        "serve/ingest/test_order.py::test_what_a_forgotten_viewer_did_before_comes_too_late",
    ),
    "records in the journal, not in the log": (
        (intake.MAX_UNFLUSHED, mib(intake.MAX_UNFLUSHED_BYTES)),
        f"{INGEST}::test_a_journal_not_written_to_the_log_takes_events_but_not_exposures",
    ),
    "all records in the journal": (
        (mib(2 * intake.MAX_UNFLUSHED_BYTES),),
        f"{INGEST}::test_a_journal_with_too_many_bytes_refuses_until_the_log_is_written",
    ),
    "a read of the journal": (
        (records.ENTRIES_AT_ONCE,),
        "test_limits.py::test_the_journal_is_read_a_few_commits_at_a_time",
    ),
    "records before the log is written": (
        (ingest.FLUSH_RECORDS, mib(ingest.FLUSH_BYTES), ingest.FLUSH_EVERY_S),
        f"{INGEST}::test_a_full_journal_is_rolled_before_its_minute",
    ),
    "a segment": (
        (retention.SEGMENT_ENTRIES, mib(retention.SEGMENT_BYTES)),
        f"{INGEST}::test_a_segment_holds_a_bounded_number_of_bytes",
    ),
    "a row group of a segment": (
        (log_segments.AT_ONCE, mib(log_segments.AT_ONCE_BYTES)),
        "serve/log/test_compaction.py::test_a_row_group_holds_a_bounded_number_of_bytes",
    ),
    "a merged segment": (
        (mib(compaction.MAX_BYTES), mib(compaction.AT_ONCE_BYTES)),
        "serve/log/test_compaction.py::test_few_that_fill_a_segment_are_merged",
    ),
    "rows read at once to merge segments": (
        (compaction.AT_ONCE_ROWS["events"], compaction.AT_ONCE_LONG_ROWS, 64),
        "serve/log/test_compaction.py::test_many_segments_become_one_with_the_same_records",
    ),
    "a row group of a snapshot": (
        (snapshots.AT_ONCE, mib(snapshots.AT_ONCE_BYTES)),
        "serve/log/test_retention.py::test_a_row_group_of_a_snapshot_holds_a_bounded_number_of_bytes",
    ),
    "records after the newest snapshot": (
        (retention.EVERY_RECORDS,),
        "serve/log/test_retention.py::test_a_snapshot_is_due_after_an_hour_or_many_records",
    ),
    "values of a column that `load` reads at once": (
        (stream.VALUES_AT_ONCE, mib(stream.BYTES_AT_ONCE)),
        "serve/log/test_stream.py::test_parts_are_bounded_and_hold_all_records_of_their_range",
    ),
    "shown candidates whose joins `load` counts": (
        (stream.SAMPLE_VALUES,),
        "serve/log/test_rebuild.py::test_the_joins_of_a_large_log_are_those_of_a_sample",
    ),
    "records of the log that Ingest applies when it starts": (
        (diagnoses.MAX_CATCH_UP,),
        f"{INGEST}::test_a_store_that_lacks_too_many_records_is_refused",
    ),
}


def table() -> dict[str, tuple[str, str]]:
    """Return the value and the metrics of each row of `docs/limits.md`."""
    found = {}
    for line in (ROOT / "docs" / "limits.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| ") and len(cells) == 4 and not cells[0].startswith(("limit", "**")):
            found[cells[0]] = (cells[1], cells[3])
    return found


@cache
def functions_of(path: str) -> frozenset[str]:
    tree = ast.parse((ROOT / "tests" / path).read_text())
    functions = ast.FunctionDef | ast.AsyncFunctionDef
    return frozenset(node.name for node in tree.body if isinstance(node, functions))


def test_each_row_of_the_table_has_a_test_here_and_each_test_a_row():
    assert list(table()) == list(ROWS)


@pytest.mark.parametrize("row", ROWS)
def test_a_row_has_the_value_of_the_code_and_names_a_test_that_exists(row):
    values, test = ROWS[row]
    for value in values:
        written = f"{value:,.0f}" if isinstance(value, float | int) else str(value)
        assert re.search(rf"(?<![\d,.]){re.escape(written)}(?!\d|,\d)", table()[row][0]), written
    path, name = test.split("::")
    assert name in functions_of(path)


def test_every_metric_of_the_table_is_one_of_ours():
    known = {metric.name for metric in METRICS.values()}
    assert {name for _, metrics in table().values() for name in re.findall(r"`(\w+)`", metrics)} <= known


def test_haproxy_passes_on_all_headers_that_the_service_takes():
    # HAProxy keeps 1 KiB of a buffer free. A header has four bytes besides its name and value.
    room = int(environment.FAST["RAY_SERVE_HAPROXY_TUNE_BUFSIZE"]) - 1024
    longest_path = 2_000
    assert room >= request_headers.MAX_HEADER_BYTES + 4 * request_headers.MAX_HEADERS + longest_path


def test_the_journal_is_read_a_few_commits_at_a_time():
    commits = [(seq, records.pack(records.JournalEntry(0, []))) for seq in range(1, 30)]
    reads = []

    class Store:
        def journal(self, after, num):
            reads.append(num)
            return [commit for commit in commits if commit[0] > after][:num]

    assert [seq for seq, _ in records.entries(Store())] == list(range(1, 30))
    assert set(reads) == {records.ENTRIES_AT_ONCE}
