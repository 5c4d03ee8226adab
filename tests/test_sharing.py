"""Traces of one callable share what is made of weights: one copy of it, and never one of other contents."""

import contextlib
import gc
import io
import itertools
import random
import threading

import pytest
import torch
from torch import nn

import framelift
from framelift import _C
from framelift.bench import compare

LENGTHS = (8, 12, 20, 33)


@pytest.fixture(autouse=True)
def eager_in_one_thread():
    """Small operators on the threads of two pools, on few cores, wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def compiled(model):
    return framelift.compile(model, threads=2)


def listed():
    """(blocks, bytes) that engines can share, in the whole process."""
    gc.collect()
    return _C.constants()


def linears():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(96, 160), nn.ReLU(), nn.Linear(160, 96), nn.LayerNorm(96)).eval()


class Net(nn.Module):
    """Convolutions with batch norms, which are folded into them."""

    def __init__(self):
        super().__init__()
        self.a, self.na = nn.Conv2d(3, 40, 3, padding=1, bias=False), nn.BatchNorm2d(40)
        self.b, self.nb = nn.Conv2d(40, 48, 3, padding=1), nn.BatchNorm2d(48)
        self.head = nn.Linear(48, 128)

    def forward(self, x):
        x = self.na(self.a(x)).relu()
        return self.head(self.nb(self.b(x)).relu().mean((2, 3)))


def images():
    torch.manual_seed(0)
    net = Net()
    for norm in (net.na, net.nb):
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
    return net.eval()


def input_of(model, length):
    return torch.randn(1, 3, length, length) if isinstance(model, Net) else torch.randn(length, 96)


def check(fast, model, x):
    with torch.inference_mode():
        got, want = fast(x), model(x)
    assert compare(got, want)[1] < 1e-3


def warm(fast, model, lengths=LENGTHS):
    for length in lengths:
        for _ in range(3):
            check(fast, model, input_of(model, length))


def all_engines(fast):
    return all(p.kind == "engine" for p in framelift.explain(fast).partitions)


# --- bytes ---


@pytest.mark.parametrize("make", [linears, images])
def test_lengths_hold_one_copy(make):
    lengths = LENGTHS if make is linears else (29, 30, 31, 33)  # small images are served by other kernels
    model, before = make(), listed()
    fast = compiled(model)
    warm(fast, model, lengths[:1])
    one = listed()
    assert one[1] - before[1] > 80_000
    warm(fast, model, lengths[1:])
    assert listed() == one
    explanation = framelift.explain(fast)
    assert len(explanation.traces) == len(lengths) and all_engines(fast)
    held = [p.memory for p in explanation.partitions]
    shared = one[1] - before[1]
    own = held[0]["packed"] - shared  # small ones are each engine's
    assert 0 <= own < 16384 and held[0]["shared"] == 0
    assert all(m["packed"] == own and m["shared"] == shared for m in held[1:])
    assert explanation.memory["packed"] == shared + len(lengths) * own
    del fast, explanation
    assert listed() == before


def test_sizes_that_other_kernels_serve_share_the_rest():
    model, before = images(), listed()
    fast = compiled(model)
    warm(fast, model)
    explanation = framelift.explain(fast)
    assert all_engines(fast) and sum(p.memory["shared"] for p in explanation.partitions) > 0
    del fast, explanation
    assert listed() == before


def test_bfloat16_and_attention_share_too():
    torch.manual_seed(0)
    model, before = nn.TransformerEncoderLayer(64, 4, 256, batch_first=True).eval().bfloat16(), listed()
    fast = compiled(model)
    held = []
    for length in LENGTHS:
        x = torch.randn(2, length, 64, dtype=torch.bfloat16)
        with torch.inference_mode():
            for _ in range(2):
                assert compare(fast(x), model(x))[0] > 0.999
        held.append(listed())
    assert held[0] > before and held == held[:1] * len(held)


def test_traces_that_go_let_go():
    model, before = linears(), listed()
    fast = compiled(model)
    warm(fast, model, [8])
    one = listed()
    for length in range(9, 76):  # more than are kept
        warm(fast, model, [length])
        assert _C.constants() == one
    assert len(framelift.explain(fast).traces) == 64
    framelift.reset(fast)
    assert listed() == before
    warm(fast, model, [8])
    assert listed() == one
    del fast
    assert listed() == before


def test_two_callables_of_a_model():
    model, before = linears(), listed()
    one, two = compiled(model), compiled(model)
    for fast, length in itertools.product((one, two), LENGTHS):
        warm(fast, model, [length])
    with torch.no_grad():
        model[0].weight.mul_(1.5)
    for fast, length in itertools.product((one, two), LENGTHS):
        warm(fast, model, [length])
    model[0].weight.data.add_(0.25)
    framelift.refresh(two)
    for length in LENGTHS:
        warm(two, model, [length])
    framelift.refresh(one)
    for length in LENGTHS:
        warm(one, model, [length])
    del one
    warm(two, model)
    del two, fast
    assert listed() == before


# --- changes, with the traces in every order ---


def in_place(model, fast, rng):
    with torch.no_grad():
        for p in rng.sample(list(model.parameters()), 2):
            p.mul_(1 + 0.2 * rng.random())


def one_element(model, fast, rng):
    """Of places that are compared only a few."""
    p = next(p for p in model.parameters() if p.numel() > 10_000)
    with torch.no_grad():
        p.view(-1)[7_777] += 40


def load(model, fast, rng):
    model.load_state_dict({k: v * 1.1 if v.is_floating_point() else v for k, v in model.state_dict().items()})


def assign(model, fast, rng):
    state = {k: v.clone() * 0.9 if v.is_floating_point() else v.clone() for k, v in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def other_data(model, fast, rng):
    p = rng.choice(list(model.parameters()))
    p.data = p.detach() * 1.2


def unseen(model, fast, rng):
    for p in model.parameters():
        p.data.add_(0.05 * rng.random())
    framelift.refresh(fast)


def unseen_element(model, fast, rng):
    p = rng.choice([p for p in model.parameters() if p.dim() > 1])
    flat = p.data.view(-1)
    flat[rng.randrange(flat.numel())] += 3
    framelift.refresh(fast)


def there_and_back(model, fast, rng):
    """As adapters are: other parameters, then the ones before again."""
    layer = next(m for m in model.modules() if isinstance(m, nn.Linear))
    if not hasattr(there_and_back, "kept") or there_and_back.kept[0] is not model:
        there_and_back.kept = (model, layer.weight, nn.Parameter(layer.weight.detach() * 2))
    layer.weight = rng.choice(there_and_back.kept[1:])


def train(model, fast, rng):
    model.train()
    with torch.no_grad():
        model(2 * input_of(model, 8) + 1)
    model.eval()


def statistics_by_hand(model, fast, rng):
    if isinstance(model, Net):
        model.nb.running_var.data.copy_(torch.rand_like(model.nb.running_var) + 0.5)


def one_statistic(model, fast, rng):
    if isinstance(model, Net):
        model.nb.running_mean[3:6] += 0.1
        model.nb.running_var[3:6] = 0.01 + rng.random() / 50  # the scale of packed weights


SEEN = [in_place, one_element, load, assign, other_data, there_and_back, train, statistics_by_hand, one_statistic]
CHANGES = [*SEEN, unseen, unseen_element]


@pytest.mark.parametrize("make", [linears, images])
@pytest.mark.parametrize("change", CHANGES)
def test_changes(make, change):
    model, before = make(), listed()
    fast = compiled(model)
    warm(fast, model, LENGTHS[:3])
    recorded = framelift.explain(fast).recorded
    for order in itertools.permutations(LENGTHS[:3]):
        change(model, fast, random.Random(str(order)))
        for length in (*order, *order):
            check(fast, model, input_of(model, length))
    assert framelift.explain(fast).recorded == recorded and all_engines(fast)
    if make is linears:
        packed = [p.memory["packed"] + p.memory["shared"] for p in framelift.explain(fast).partitions]
        assert packed == packed[:1] * 3 and framelift.explain(fast).memory["packed"] == packed[0]
    del fast
    assert listed() == before


@pytest.mark.parametrize("make", [linears, images])
@pytest.mark.parametrize("seed", range(4))
def test_random_changes(make, seed):
    rng = random.Random(seed)
    model, before = make(), listed()
    fast = compiled(model)
    for _ in range(60):
        if rng.random() < 0.4:
            rng.choice(CHANGES)(model, fast, rng)
        check(fast, model, input_of(model, rng.choice(LENGTHS)))
    del fast
    assert listed() == before


def test_after_a_change_the_first_trace_makes_it_for_all():
    model = linears()
    fast = compiled(model)
    warm(fast, model)
    with torch.no_grad():
        model[0].weight.add_(0.5)
    one = listed()
    check(fast, model, input_of(model, LENGTHS[0]))
    two = listed()
    assert two[0] == one[0] + 1, "what the others hold is left as it is"
    for length in LENGTHS[1:]:
        check(fast, model, input_of(model, length))
        assert listed()[0] == (two if length != LENGTHS[-1] else one)[0]


def test_a_single_trace_packs_in_place():
    model = linears()
    fast = compiled(model)
    warm(fast, model, [8])
    one = listed()
    for _ in range(3):
        with torch.no_grad():
            model[0].weight.add_(0.5)
        check(fast, model, input_of(model, 8))
        assert listed() == one


# --- contents that nothing tells of ---


def change_unseen(model, everything):
    weight = model[2].weight.data
    if everything:
        weight.add_(0.5)
    else:
        weight.view(-1)[7_777] += 40


@pytest.mark.parametrize("everything", [True, False])
def test_a_new_trace_finds_what_was_changed_unseen(everything):
    """Without refresh() the traces that are there may be behind; a new one is not, and tells the others."""
    model = linears()
    fast = compiled(model)
    warm(fast, model, LENGTHS[:2])
    change_unseen(model, everything)
    warm(fast, model, LENGTHS[2:3])
    assert all_engines(fast)
    if not everything:
        warm(fast, model)
    framelift.refresh(fast)
    warm(fast, model)
    assert all_engines(fast)


def test_changed_unseen_between_the_first_call_and_the_engine():
    model = linears()
    fast = compiled(model)
    warm(fast, model, LENGTHS[:2])
    check(fast, model, input_of(model, LENGTHS[2]))
    change_unseen(model, True)
    warm(fast, model, LENGTHS[2:3])
    framelift.refresh(fast)
    warm(fast, model)
    assert all_engines(fast)


@pytest.mark.parametrize("new_first", [False, True])
def test_refresh_while_a_trace_has_no_engine_yet(new_first):
    model = linears()
    fast = compiled(model)
    warm(fast, model, LENGTHS[:2])
    check(fast, model, input_of(model, LENGTHS[2]))
    change_unseen(model, True)
    framelift.refresh(fast)
    for length in LENGTHS[2::-1] if new_first else LENGTHS[:3]:
        warm(fast, model, [length])
    assert all_engines(fast)


# --- weights that share memory, and others ---


class Overlapping(nn.Module):
    """`part` lies in `whole`, with a version counter of its own."""

    def __init__(self):
        super().__init__()
        self.whole = nn.Parameter(torch.randn(96, 160))
        self.part = nn.Parameter(self.whole.data[:, :96])

    def forward(self, x):
        return (x @ self.part).relu() @ self.whole


def test_weights_in_the_same_memory():
    torch.manual_seed(0)
    model, before = Overlapping(), listed()
    fast = compiled(model)
    warm(fast, model)
    for i, p in enumerate((model.part, model.whole) * 4):
        with torch.no_grad():
            if i % 4 < 2:
                p.mul_(1.25)
            else:
                p[5, 7] += 40
        for length in random.Random(i).sample(LENGTHS, 4):
            check(fast, model, input_of(model, length))
    del fast
    assert listed() == before


def test_tied_weights():
    model = nn.Sequential(nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 96)).eval()
    model[2].weight = model[0].weight
    fast = compiled(model)
    warm(fast, model)
    one = listed()
    with torch.no_grad():
        model[0].weight.mul_(0.5)
    warm(fast, model)
    assert listed() == one


def test_shared_memory_is_not_shared():
    model = linears()
    model.share_memory()
    before = listed()
    fast = compiled(model)
    warm(fast, model)
    model[0].weight.data.add_(1)  # as another process might
    warm(fast, model)
    assert listed() == before


class Talks(nn.Module):
    """Two graphs around a break."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(96, 160), nn.Linear(160, 96)

    def forward(self, x):
        y = self.first(x).relu()
        print(end="")
        return self.second(y)


def test_graphs_around_breaks_share():
    torch.manual_seed(0)
    model, before = Talks().eval(), listed()
    fast = compiled(model)
    with contextlib.redirect_stdout(io.StringIO()):
        warm(fast, model, LENGTHS[:1])
        one = listed()
        warm(fast, model)
        assert listed() == one and one > before
        with torch.no_grad():
            model.second.weight.add_(1)
        warm(fast, model)
        assert listed() == one
        del fast
        assert listed() == before


class Grows(nn.Module):
    """Goes on in other ways after the break: branches."""

    def __init__(self):
        super().__init__()
        self.layer, self.more = nn.Linear(96, 96), nn.Linear(96, 96)

    def forward(self, x):
        y = self.layer(x)
        n = float(y.detach().numpy().flat[0] * 0) + x.shape[0] + self.turn
        return self.more(y) if n % 2 else self.more(self.layer(y))


def test_branches_share():
    torch.manual_seed(0)
    model = Grows().eval()
    fast = compiled(model)
    blocks = []
    for turn in (0, 1, 0, 1, 1, 0):
        model.turn = turn
        for length in LENGTHS[:2]:
            for _ in range(3):
                check(fast, model, input_of(model, length))
        with torch.no_grad():
            model.more.weight.mul_(1.5)
        for length in LENGTHS[:2]:
            check(fast, model, input_of(model, length))
        blocks.append(listed()[0])
    memory = framelift.explain(fast).memory
    assert memory["packed"] <= 4 * 2 * 96 * 128 * 2


# --- threads ---


def test_threads_run_one_trace_while_others_change_weights():
    """Each element is of the weights before or after a change, as in eager: never of memory that is gone."""
    model = nn.Linear(128, 128, bias=False).eval()
    with torch.no_grad():
        model.weight.fill_(1.0)
    fast = compiled(model)
    x = {n: torch.ones(n, 128) for n in (8, 16, 24)}
    with torch.inference_mode():
        for n in x:
            fast(x[n]), fast(x[n])
    stop, wrong = threading.Event(), []

    def run(n):
        with torch.inference_mode():
            while not stop.is_set():
                y = fast(x[n])
                if not (y.min() >= 128 * 0.99 and y.max() <= 128 * 4.01):
                    wrong.append((n, y.min().item(), y.max().item()))

    threads = [threading.Thread(target=run, args=(n,)) for n in (8, 16)]
    for thread in threads:
        thread.start()
    for i in range(150):
        with torch.no_grad():
            if i % 3 == 2:
                model.weight = nn.Parameter(torch.full((128, 128), 1.0 + i % 4))
            else:
                model.weight.fill_(1.0 + i % 4)
        with torch.inference_mode():
            if not torch.equal(fast(x[24]), torch.full((24, 128), 128 * (1.0 + i % 4))):
                wrong.append(i)
    stop.set()
    for thread in threads:
        thread.join(60)
    assert not wrong
    for n in x:
        with torch.inference_mode():
            assert torch.allclose(fast(x[n]), model(x[n]))


def test_threads_that_record_and_refresh():
    model = linears()
    fast = compiled(model)
    warm(fast, model, [8])
    failed = []

    def record(first):
        try:
            for length in range(first, first + 12, 2):
                with torch.inference_mode():
                    fast(input_of(model, length)), fast(input_of(model, length))
        except Exception as error:  # told below
            failed.append(error)

    threads = [threading.Thread(target=record, args=(n,)) for n in (9, 10)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        model[0].weight.data.mul_(1.0001)
        framelift.refresh(fast)
    assert not failed
    warm(fast, model, [8, 9, 12, 17])
