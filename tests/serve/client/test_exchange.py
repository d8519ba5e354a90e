from serve.client.exchange import Exchange, Send, Wait
from serve.client.reply import Lost, Reply
from serve.client.retries import Retries

BUSY = Reply(503, b"", "application/problem+json")


class Clock:
    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s


def begun(clock, timeout_s=0.25, random=lambda: 0.5):
    steps = Exchange("/v1/rank", b"{}", {}, timeout_s, sends_deadline=True).steps(
        Retries(random=random, clock=clock), clock
    )
    return steps, next(steps)


def end(steps, reply):
    """Return the next step after this reply, or the result of the exchange."""
    try:
        return steps.send(reply)
    except StopIteration as stopped:
        return stopped.value


def test_each_try_tells_the_service_what_is_left():
    clock = Clock()
    steps, first = begun(clock)
    assert first.headers == {"X-Deadline-Ms": "240"}
    clock.now_s += 0.1
    wait = end(steps, BUSY)
    assert isinstance(wait, Wait)
    clock.now_s += 0.05
    second = end(steps, None)
    assert second.headers == {"X-Deadline-Ms": "90"}
    assert end(steps, BUSY) == BUSY


def test_a_step_of_a_try_has_what_is_left_then_and_never_nothing():
    clock = Clock()
    _, first = begun(clock)
    assert round(first.left["connect"], 6) == 0.25
    clock.now_s += 0.2
    assert round(first.left.get("read"), 6) == 0.05
    clock.now_s += 0.2
    assert first.left["read"] > 0.0


def test_who_overslept_tries_no_more():
    clock = Clock()
    steps, _ = begun(clock)
    assert isinstance(end(steps, Lost("reset")), Wait)
    clock.now_s += 0.3
    assert end(steps, None) == Lost("reset")


def test_a_timeout_leaves_nothing_to_try_with():
    clock = Clock()
    steps, first = begun(clock)
    assert isinstance(first, Send)
    clock.now_s += 0.25
    assert end(steps, Lost("slow", timed_out=True)) == Lost("slow", timed_out=True)


def test_a_deadline_is_one_that_the_service_takes():
    assert begun(Clock(), timeout_s=0.002)[1].headers == {"X-Deadline-Ms": "1"}
    assert begun(Clock(), timeout_s=900.0)[1].headers == {"X-Deadline-Ms": "60000"}
