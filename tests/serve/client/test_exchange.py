from serve.client.exchange import Exchange
from serve.client.reply import Lost, Reply
from serve.client.retries import Retries

BUSY = Reply(503, b"", "application/problem+json")


class Clock:
    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s


def begun(clock, timeout_s=0.25):
    """Return an exchange, and the headers of its first attempt."""
    exchange = Exchange(
        "http://h", "/v1/rank", b"{}", {}, timeout_s, None, Retries(random=lambda: 0.5, clock=clock),
        sends_deadline=True, clock=clock,
    )  # fmt: skip
    return exchange, exchange.first()


def test_each_try_tells_the_service_what_is_left():
    clock = Clock()
    exchange, first = begun(clock)
    assert first == {"X-Deadline-Ms": "240"}
    clock.now_s += 0.1
    assert exchange.delay_s(BUSY) > 0.0
    clock.now_s += 0.05
    assert exchange.again() == {"X-Deadline-Ms": "90"}


def test_a_step_of_a_try_has_what_is_left_then_and_never_nothing():
    clock = Clock()
    exchange, _ = begun(clock)
    assert round(exchange.left["connect"], 6) == 0.25
    clock.now_s += 0.2
    assert round(exchange.left.get("read"), 6) == 0.05
    clock.now_s += 0.2
    assert exchange.left["read"] > 0.0


def test_who_overslept_tries_no_more():
    clock = Clock()
    exchange, _ = begun(clock)
    assert exchange.delay_s(Lost("reset")) > 0.0
    clock.now_s += 0.3
    assert exchange.again() is None


def test_a_timeout_leaves_nothing_to_try_with():
    clock = Clock()
    exchange, _ = begun(clock)
    clock.now_s += 0.25
    assert exchange.delay_s(Lost("slow", timed_out=True)) is None


def test_a_deadline_is_one_that_the_service_takes():
    assert begun(Clock(), timeout_s=0.002)[1] == {"X-Deadline-Ms": "1"}
    assert begun(Clock(), timeout_s=900.0)[1] == {"X-Deadline-Ms": "60000"}
