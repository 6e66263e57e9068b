"""What every optimizer keeps: its reference in doubles, states of any width, schedules, closures, odd gradients."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from optimizer_table import NONE_SMALL, OPTIMIZERS, SHAPES, gradients, moments, parameters, run
from thrifty.optim import AdamW4bit, AdamW8bit, Lamb, Muon
from thrifty.quant.states import dither
from thrifty.spec.errors import ThriftyError

ALL = pytest.mark.parametrize("name", OPTIMIZERS)
EPS = 2.0**-24
BLOCKED = [
    name for name, entry in OPTIMIZERS.items() if entry.made(parameters([(64, 64)])).formats_of(torch.zeros(4096))
]
STEPS = 300
# From the last level to the one below it, as a share of it.
LARGEST_STEP = {
    "uniform": lambda top: 1 / top,
    "root": lambda top: 1 - (1 - 1 / top) ** 2,
    "square": lambda top: 1 - (1 - top**-0.5) ** 2,
}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Thousands of small kernels: on a shared machine, threads would wait for each other at every one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def values(params):
    return [p.detach().clone() for p in params]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name not in BLOCKED])
def test_hundreds_of_steps_as_in_doubles(name):
    entry, params = OPTIMIZERS[name], parameters(SHAPES)
    optimizer = entry.made(params)
    doubles, states = [p.detach().double() for p in params], [{} for _ in params]
    for step in range(STEPS):
        run(optimizer, params, range(step, step + 1))
        for at, g in enumerate(gradients(SHAPES, step)):
            doubles[at] = entry.reference(doubles[at], g.double(), states[at], **entry.settings)
        for p, q in zip(params, doubles, strict=True):
            # Each step rounds the parameter and its update; LAMB's and LARS' updates are as long as the parameter.
            size = max(entry.largest, float(q.norm()) if name.startswith("La") else 0.0)
            bound = (step + 1) * (2 * EPS * float(q.abs().max()) + entry.settings["lr"] * entry.off * size)
            assert (p.detach() - q).abs().max() <= bound


@pytest.mark.parametrize("name", BLOCKED)
@pytest.mark.parametrize("compiled", [False, True])
def test_each_step_of_blocks_is_off_by_one_code_at_most(name, compiled):
    entry, params = OPTIMIZERS[name], parameters([(130, 67)])
    optimizer = entry.made(params, small=0, compiled=compiled)
    (p,) = params
    before = {name: torch.zeros_like(p) for name in optimizer.kind}
    for step in range(60):
        old = p.detach().double()
        state = {name: moment.double() for name, moment in before.items()} | {"step": step}
        run(optimizer, params, range(step, step + 1))
        told = entry.reference(old, gradients([tuple(p.shape)], step)[0].double(), state, **entry.settings)
        bound = 2 * EPS * float(old.abs().max()) + entry.settings["lr"] * entry.off * entry.largest
        assert (p.detach() - told).abs().max() <= bound
        before = moments(optimizer, p)
        for moment in optimizer.kind:
            got, exact = before[moment].double().flatten(), state[moment].flatten()
            form = optimizer.formats_of(p)[list(optimizer.kind).index(moment)]
            steps = optimizer.state[p][moment + "_scale"].double().repeat_interleave(form.block)[: got.numel()]
            steps = steps.sqrt() if form.kind == "square" else steps
            if form.kind != "uniform":  # their levels are equally far apart by their roots
                got, exact = (x.sign() * x.abs().sqrt() for x in (got, exact))
            assert ((got - exact).abs() <= 1.001 * steps).all()


@pytest.mark.parametrize("name", [name for name in BLOCKED if "Muon" not in name])
def test_compiled_is_eager_but_for_the_last_bits(name):
    one, other = parameters([(70, 1000)]), parameters([(70, 1000)])
    run(OPTIMIZERS[name].made(one, compiled=False), one, range(20))
    run(OPTIMIZERS[name].made(other, compiled=True), other, range(20))
    lr = OPTIMIZERS[name].settings["lr"]
    # A code may fall on either side: few values differ by more than rounding, and none by more than steps are long.
    rounding = 20 * 2 * EPS * float(one[0].detach().abs().max()) + 1e-3 * lr
    assert ((one[0] - other[0]).abs() > rounding).float().mean() < 0.001
    assert (one[0] - other[0]).abs().max() <= 40 * lr


@pytest.mark.parametrize(("make", "heard", "off"), [(AdamW8bit, 100, 0.02), (AdamW4bit, 500, 0.08)])
def test_no_bias_builds_up_in_codes(make, heard, off):
    (p,) = params = parameters([(16, 256)])
    optimizer = make(params, betas=(0.9, 0.999), small=0)
    exact, size = torch.zeros(16, 256, dtype=torch.float64), torch.logspace(-1.5, 0, 256)
    for step in range(1000):
        g = torch.randn(16, 256, generator=torch.Generator().manual_seed(step)) * size
        g[:, ::2] *= step < heard  # half of the values hear nothing any more: nearest codes would keep them for ever
        p.grad = g
        optimizer.step()
        exact = 0.999 * exact + 0.001 * g.double().square()
    got = moments(optimizer, p)["exp_avg_sq"].double()
    for columns in (slice(0, None, 2), slice(1, None, 2)):
        large = slice(200 + (columns.start or 0), None, 2)
        assert got[:, large].sqrt().mean() == pytest.approx(float(exact[:, large].sqrt().mean()), rel=off)
    assert (got > 0).all()


@pytest.mark.parametrize(("shape", "compiled"), [((100,), None), ((80, 128), False), ((80, 128), True)])
def test_bfloat16_weights_move_by_steps_below_their_last_bit(shape, compiled):
    p = torch.nn.Parameter(torch.ones(shape, dtype=torch.bfloat16))
    optimizer = AdamW8bit([p], lr=1e-4, weight_decay=0.0, compiled=compiled)
    for _ in range(10):
        p.grad = torch.ones_like(p)
        optimizer.step()
    # Ten steps of 1e-4; to the nearest bfloat16, 2^-8 below 1 apart, all would still be 1.
    assert float(p.detach().float().mean()) == pytest.approx(0.999, abs=2e-4)


def test_draws_fill_the_unit_interval_over_time():
    draws = torch.stack([dither(step, 256, 2) for step in range(1, 201)])
    assert draws.min() >= 0
    assert draws.max() < 1
    assert (draws.mean(0) - 0.5).abs().max() < 0.02


@ALL
def test_a_state_dict_goes_on_bit_by_bit(name):
    entry, shapes = OPTIMIZERS[name], [(96, 48), (40, 129), (8, 8)]
    params, others = parameters(shapes), parameters(shapes, seed=1)
    optimizer, other = entry.made(params), entry.made(others)
    run(optimizer, params, range(5))
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for p, q in zip(params, others, strict=True):
        q.data.copy_(p.data)
    run(optimizer, params, range(5, 8))
    run(other, others, range(5, 8))
    assert same(values(params), values(others))


@ALL
def test_copies_go_on(name):
    params = parameters([(96, 48), (8, 8)])
    optimizer = OPTIMIZERS[name].made(params)
    run(optimizer, params, range(2))
    copies = [copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))]
    run(optimizer, params, range(2, 3))
    for other in copies:
        theirs = other.param_groups[0]["params"]
        run(other, theirs, range(2, 3))
        assert same(values(params), values(theirs))


@pytest.mark.parametrize("name", BLOCKED)
def test_states_travel_between_widths(name):
    entry, shapes = OPTIMIZERS[name], [(96, 48)]
    (narrow,), (wide,), (again,) = (parameters(shapes) for _ in range(3))
    optimizer = entry.made([narrow])
    run(optimizer, [narrow], range(5))
    full = entry.made([wide], small=NONE_SMALL)
    full.load_state_dict(optimizer.state_dict())
    assert all(value.dtype == torch.float32 for value in full.state[wide].values())
    assert same(moments(optimizer, narrow).values(), moments(full, wide).values())
    back = entry.made([again])
    back.load_state_dict(full.state_dict())
    for moment, form in zip(optimizer.kind, optimizer.formats_of(narrow), strict=True):
        first, second = (moments(o, p)[moment] for o, p in ((optimizer, narrow), (back, again)))
        assert (first - second).abs().max() <= LARGEST_STEP[form.kind](form.top) * first.abs().max()
        assert back.state[again][moment].dtype == torch.uint8


def test_states_come_from_torch_and_go_there():
    (p,), (q,) = parameters([(96, 48)]), parameters([(96, 48)])
    torch_adam = torch.optim.AdamW([p], lr=0.5)
    run(torch_adam, [p], range(5))
    ours = AdamW8bit([q], small=NONE_SMALL)
    ours.load_state_dict(torch_adam.state_dict())
    assert ours.param_groups[0]["lr"] == 0.5
    assert torch.equal(ours.state[q]["exp_avg_sq"], torch_adam.state[p]["exp_avg_sq"])
    torch_adam.load_state_dict(ours.state_dict())
    run(torch_adam, [p], range(5, 6))


def test_a_state_of_other_parameters_is_refused():
    (p,), (q,) = parameters([(96, 48)]), parameters([(96, 64)])
    one, other = AdamW8bit([p]), AdamW8bit([q])
    run(one, [p], range(1))
    with pytest.raises(ThriftyError, match="no moment of 6144 values"):
        other.load_state_dict(one.state_dict())
    wide = torch.optim.AdamW([p])
    run(wide, [p], range(1))
    with pytest.raises(ThriftyError, match=r"exp_avg of shape \(96, 48\) for a parameter of shape \(96, 64\)"):
        other.load_state_dict(wide.state_dict())
    with pytest.raises(ThriftyError, match="without exp_avg"):
        other.load_state_dict({**one.state_dict(), "state": {0: {"step": 1}}})


def dynamic_map(signed):
    """The codes of arXiv:2110.02861, in closed form."""
    found = [0.0, 1.0]
    for i in range(7):
        count = 2**i if signed else 2 ** (i + 1)
        sizes = [10.0 ** (i - 6) * (0.1 + 0.9 * (j + 0.5) / count) for j in range(count)]
        found += sizes + ([-size for size in sizes] if signed else [])
    return torch.tensor(sorted(found))


def test_the_map_is_that_of_bitsandbytes():
    for signed in (True, False):
        assert len(dynamic_map(signed)) == 256
        assert dynamic_map(signed).abs().sum().item() == pytest.approx(75.105263, abs=1e-4)


@pytest.mark.parametrize("hidden", [False, True])
def test_states_of_bitsandbytes_are_read(hidden):
    (p,), generator = parameters([(96, 50)]), torch.Generator().manual_seed(0)
    maps = {"qmap1": dynamic_map(True), "qmap2": dynamic_map(False)}
    state = {
        **maps,
        **{f"state{at}": torch.randint(256, (96, 50), generator=generator, dtype=torch.uint8) for at in (1, 2)},
        **{f"absmax{at}": torch.rand(19, generator=generator) for at in (1, 2)},
    }
    small = {"step": 7, "state1": torch.full((3,), 0.5), "state2": torch.full((3,), 0.25)}
    wrapped = {"step": 7, **({"__bnb_optimizer_quant_state__": state} if hidden else state)}
    optimizer = AdamW8bit([p, torch.nn.Parameter(torch.zeros(3))], small=NONE_SMALL)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": {0: wrapped, 1: small}})
    got = moments(optimizer, p)
    for at, name in enumerate(("exp_avg", "exp_avg_sq"), 1):
        flat = state[f"state{at}"].flatten()
        for place in (0, 255, 256, 4799):
            told = maps[f"qmap{at}"][int(flat[place])] * state[f"absmax{at}"][place // 256]
            assert got[name].flatten()[place] == told
    assert int(optimizer.state[p]["step"]) == 7
    assert optimizer.state[optimizer.param_groups[0]["params"][1]]["exp_avg_sq"][0] == 0.25


@ALL
def test_a_rate_may_be_a_tensor_and_follows_a_scheduler(name):
    entry, lr = OPTIMIZERS[name], OPTIMIZERS[name].settings["lr"]
    one, other = parameters([(96, 48), (8, 8)]), parameters([(96, 48), (8, 8)])
    floats, tensors = entry.made(one), entry.made(other, lr=torch.tensor(lr, dtype=torch.float64))
    schedule = torch.optim.lr_scheduler.LambdaLR(floats, lambda step: 1 / (step + 1))
    for step in range(4):
        tensors.param_groups[0]["lr"].fill_(lr / (step + 1))
        run(floats, one, range(step, step + 1))
        run(tensors, other, range(step, step + 1))
        schedule.step()
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(one, other, strict=True))


@ALL
def test_groups_closures_and_parameters_without_gradient(name):
    entry = OPTIMIZERS[name]
    first, second, idle = params = parameters([(96, 48)] * 3)
    start = values(params)
    optimizer = entry.made([{"params": [first, idle]}, {"params": [second], "lr": 0.0}])

    def closure():
        optimizer.zero_grad()
        loss = (first * first).sum() + second.sum()
        loss.backward()
        return loss

    loss = optimizer.step(closure)
    assert loss.item() == pytest.approx(((start[0] ** 2).sum() + start[1].sum()).item(), rel=1e-5)
    assert not torch.equal(first, start[0])
    assert same(values([second, idle]), start[1:])
    assert not optimizer.state[idle]


@ALL
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_zero_and_of_nothing_sound(name, dtype):
    params = [torch.nn.Parameter(p.detach().to(dtype)) for p in parameters([(96, 48), (4, 4)])]
    optimizer = OPTIMIZERS[name].made(params)
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    optimizer.step()
    assert all(torch.isfinite(p).all() for p in params)
    params[0].grad[0, 0] = float("nan")
    optimizer.step()
    assert params[0].isnan().any()
    assert name.startswith("Lamb") or params[1].isfinite().all()


@ALL
def test_tensors_in_any_order_of_memory(name):
    one = [torch.nn.Parameter(parameters([(80, 96)])[0].detach().mT)]
    other = [torch.nn.Parameter(one[0].detach().contiguous())]
    run(OPTIMIZERS[name].made(one), one, range(3))
    run(OPTIMIZERS[name].made(other), other, range(3))
    assert not one[0].is_contiguous()
    assert torch.allclose(one[0], other[0], rtol=1e-6, atol=1e-6)


def test_many_small_tensors_are_one():
    shapes = [(7,), (3, 5), (), (64,)] * 10
    params, doubles = parameters([s or (1,) for s in shapes]), parameters([s or (1,) for s in shapes])
    ours, torch_adam = AdamW8bit(params, lr=0.01), torch.optim.AdamW(doubles, lr=0.01)
    run(ours, params, range(20))
    run(torch_adam, doubles, range(20))
    assert all(torch.allclose(p, q, rtol=1e-5, atol=1e-6) for p, q in zip(params, doubles, strict=True))


@pytest.mark.parametrize(
    ("name", "most"), [("AdamW8bit", 2.04), ("AdamW4bit", 1.07), ("Lion8bit", 1.02), ("Muon 8 bit", 1.02)]
)
def test_bytes_of_a_state(name, most):
    (p,) = params = parameters([(768, 257)])
    optimizer = OPTIMIZERS[name].made(params)
    run(optimizer, params, range(1))
    held = sum(value.nbytes for key, value in optimizer.state[p].items() if key != "step")
    assert held / p.numel() <= most


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda ps: AdamW8bit(ps, lr=-1.0), "lr of -1.0"),
        (lambda ps: AdamW8bit(ps, betas=(0.9, 1.0)), "a beta of 1.0"),
        (lambda ps: Lamb(ps, weight_decay=float("nan")), "weight_decay of nan"),
        (lambda ps: Muon(ps, momentum=1.0), "momentum of 1.0"),
        (lambda ps: Muon(ps, bits=4), "momentum of 4 bits"),
        (lambda ps: Muon(ps, adjust_lr_fn="match_rms_adam"), "no scale 'match_rms_adam'"),
        (lambda ps: Muon([*ps, torch.nn.Parameter(torch.zeros(3))]), r"not a tensor of shape \(3,\)"),
    ],
)
def test_settings_that_make_no_sense(make, told):
    with pytest.raises(ThriftyError, match=told):
        make(parameters([(8, 8)]))
