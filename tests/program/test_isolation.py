"""A log of writes inside of another one: the outer one sees all that remains."""

import torch

from pyro_perm.program.isolation import WriteLog, isolation


class Counter(WriteLog):
    """Counts the operations that it sees."""

    def __init__(self):
        super().__init__()
        self.seen = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen += 1
        return super().__torch_dispatch__(func, types, args, kwargs)


def model(buffer):
    buffer.add_(1.0)
    return torch.zeros(2)


def test_an_outer_log_sees_what_happens_outside_of_isolation_only():
    buffer, outer = torch.zeros(3), Counter()
    with outer:
        with isolation(model) as writes, writes:
            model(buffer)
        assert outer.seen == 0
        assert buffer.tolist() == [0.0] * 3
        model(buffer)
        assert outer.seen == 2
        assert buffer.tolist() == [1.0] * 3
    outer.restore()
    assert buffer.tolist() == [0.0] * 3


def test_what_comes_into_being_in_isolation_is_new_to_the_outer_log():
    outer = WriteLog()
    with outer:
        with isolation(model) as writes, writes:
            made = model(torch.zeros(3))
        made.add_(1.0)
    outer.restore()
    assert made.tolist() == [1.0] * 2
