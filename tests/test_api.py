"""compile as function and decorator, explain, reset, refresh."""

import pytest
import torch

import framelift
from conftest import assert_close


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(8, 16)
        self.outer = torch.nn.Linear(16, 4)

    def forward(self, x, scale=1.0):
        return self.outer(torch.relu(self.inner(x))) * scale


@pytest.fixture
def net():
    return Net().eval()


X = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))


def test_later_calls_are_replayed(net, watch):
    watched = watch(net)
    assert [watched(X), watched(X), watched(X + 1)] == ["recorded", "replayed", "replayed"]
    e = framelift.explain(watched.fast)
    assert (e.calls, e.recorded, e.replayed, e.native) == (3, 1, 2, 0)
    assert (e.segments, len(e.breaks), e.engines, len(e.partitions)) == (1, 0, 1, 1)
    assert e.lowered + e.dead == e.operators and e.coverage == 1.0


def test_inference_mode_callers(net):
    fast = framelift.compile(net)
    with torch.inference_mode():
        for _ in range(3):
            answer = fast(X)
            assert_close(answer, net(X))
            assert answer.is_inference()
    assert framelift.explain(fast).replayed == 2


def test_each_call_owns_its_answer(net):
    fast = framelift.compile(net)
    with torch.no_grad():
        fast(X)
        first = fast(X)
        kept = first.clone()
        fast(X + 1)
        first_again = fast(X)
        first_again.zero_()
    assert torch.equal(first, kept)


def test_keyword_arguments(net, watch):
    watched = watch(net)
    watched(X, scale=2.0)
    assert watched(X, scale=2.0) == "replayed"
    watched(X, scale=3.0)
    watched(X)
    assert watched(x=X) in ("recorded", "replayed")


def test_decorator_without_arguments():
    @framelift.compile
    def double(x):
        """Twice x."""
        return x * 2

    with torch.no_grad():
        assert [double(X).equal(X * 2) for _ in range(2)] == [True, True]
    assert framelift.explain(double).replayed == 1
    assert double.__name__ == "double" and double.__doc__ == "Twice x."


def test_decorator_with_arguments():
    @framelift.compile(precision="fp32", threads=1, tactic_ms=0)
    def double(x):
        return x * 2

    with torch.no_grad():
        assert [double(X).equal(X * 2) for _ in range(2)] == [True, True]
    assert framelift.explain(double).replayed == 1


def test_decorated_method():
    class Scaled:
        factor = 3

        @framelift.compile
        def forward(self, x):
            return x * self.factor

    with torch.no_grad():
        scaled = Scaled()
        assert [scaled.forward(X).equal(X * 3) for _ in range(2)] == [True, True]
        scaled.factor = 4
        assert scaled.forward(X).equal(X * 4)


def test_bound_method(net, watch):
    watched = watch(net.forward)
    assert [watched(X), watched(X)] == ["recorded", "replayed"]


def test_backend_eager_gives_the_identical_answer(net):
    fast = framelift.compile(net, backend="eager")
    with torch.no_grad():
        for _ in range(3):
            assert torch.equal(fast(X), net(X))
    e = framelift.explain(fast)
    assert e.replayed == 2 and e.engines == 0


def test_structured_answers(watch):
    def model(x):
        return {"sum": x + x, "pair": (x * 2, [x - 1, None, "name", 7])}

    fast = watch(model).fast
    with torch.no_grad():
        for _ in range(3):
            answer = fast(X)
            assert list(answer) == ["sum", "pair"] and type(answer["pair"]) is tuple
            assert answer["pair"][1][1:] == [None, "name", 7]
            assert_close(answer["pair"][1][0], X - 1)
    assert framelift.explain(fast).replayed == 2


def test_an_answer_that_is_an_input():
    def model(x):
        return x, x.relu()

    fast = framelift.compile(model)
    with torch.no_grad():
        for _ in range(3):
            x = torch.randn(4)
            same, relu = fast(x)
            assert same is x and torch.equal(relu, x.relu())


def test_the_model_keeps_its_names(net):
    fast = framelift.compile(net)
    with torch.no_grad():
        fast(X)
    assert list(net.state_dict()) == ["inner.weight", "inner.bias", "outer.weight", "outer.bias"]
    assert type(net) is Net and net.forward.__func__ is Net.forward


def test_explain_before_the_first_call(net):
    e = framelift.explain(framelift.compile(net))
    assert e.calls == 0 and e.operators == 0
    assert str(e).endswith("not called yet. Call it once, then explain again.")


def test_explain_names_the_target(net):
    assert "Net" in framelift.explain(framelift.compile(net)).target


def test_reset_forgets_the_engines(net, watch):
    watched = watch(net)
    watched(X)
    framelift.reset(watched.fast)
    assert framelift.explain(watched.fast).segments == 0
    assert [watched(X), watched(X)] == ["recorded", "replayed"]


def test_refresh_reads_weights_that_changed_unseen(net):
    fast = framelift.compile(net)
    with torch.no_grad():
        fast(X), fast(X)
        net.outer.bias.data.add_(1.0)
        framelift.refresh(fast)
        assert_close(fast(X), net(X))
    assert framelift.explain(fast).recorded == 1


def test_training_mode_stays_random(watch):
    model = torch.nn.Dropout(0.5).train()
    fast = framelift.compile(model)
    with torch.no_grad():
        answers = [fast(torch.ones(64)) for _ in range(4)]
    assert len({tuple(a.tolist()) for a in answers}) == 4
    assert all(set(a.tolist()) == {0.0, 2.0} for a in answers)


def test_inputs_that_require_grad_are_answered_with_grad(net):
    fast = framelift.compile(net)
    x = X.clone().requires_grad_()
    with pytest.warns(UserWarning, match="requires grad"):
        answer = fast(x)
    answer.sum().backward()
    assert x.grad is not None and framelift.explain(fast).native == 1


def test_version_matches_the_wheel():
    from importlib.metadata import version

    assert version("framelift") == framelift.__version__
