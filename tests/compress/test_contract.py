"""What every codec promises. A new one enters with a line in `CODECS`."""

from __future__ import annotations

import math

import pytest
import torch

from thrifty.compress import (
    Blockwise,
    Cast,
    Identity,
    KMeans,
    Payload,
    RandomK,
    Threshold,
    TopK,
    Zstd,
    chain,
    lattice,
    uniform,
)
from thrifty.spec.errors import ThriftyError

CODECS = {
    "identity": Identity(),
    "int8": Blockwise(8),
    "int4": Blockwise(4),
    "lloyd3": Blockwise(3),
    "lloyd2": Blockwise("lloyd2"),
    "means2": Blockwise(2),
    "sign": Blockwise(1),
    "fp8 e4m3": Blockwise("fp8_e4m3"),
    "fp8 e5m2": Blockwise("fp8_e5m2"),
    "uniform 0.5": Blockwise(uniform(0.5)),
    "uniform 0.26": Blockwise(uniform(0.26, block=256)),
    "e8": Blockwise("e8"),
    "lattice 0.7": Blockwise(lattice(0.7)),
    "lattice 0.3, of 64": Blockwise(lattice(0.3, block=64)),
    "lattice zstd": chain(Blockwise(lattice(0.5)), Zstd()),
    "k-means": KMeans(),
    "k-means of 16 pairs": KMeans(16, 2, block=64),
    "k-means, shared": KMeans().refresh(torch.linspace(-2, 2, 5000).sin()),
    "k-means zstd": chain(KMeans(64, 3, block=96), Zstd()),
    "int8 stochastic": Blockwise(8, rounding="stochastic"),
    "int4 stochastic": Blockwise(4, rounding="stochastic"),
    "top 1/64": TopK(1 / 64),
    "top 1/3 of 100": TopK(1 / 3, 100),
    "top all": TopK(1.0, 64),
    "threshold 1/64": Threshold(1 / 64),
    "threshold 1/3": Threshold(1 / 3),
    "threshold all": Threshold(1.0),
    "threshold int4 zstd": chain(Threshold(0.1), Blockwise(4), Zstd()),
    "random 1/64": RandomK(64),
    "random 1/5, as they are": RandomK(5, unbiased=False),
    "bf16": Cast("bf16"),
    "fp16": Cast("fp16"),
    "zstd": Zstd(),
    "bf16 zstd": chain(Cast("bf16"), Zstd()),
    "top fp16": chain(TopK(1 / 64), Cast("fp16")),
    "int4 zstd": chain(Blockwise(4), Zstd()),
    "uniform 1 zstd": chain(Blockwise(uniform(1.0)), Zstd()),
    "top int2": chain(TopK(1 / 64), Blockwise(2)),
    "top int2 zstd": chain(TopK(1 / 64), Blockwise(2), Zstd()),
    "random int8 stochastic": chain(RandomK(8), Blockwise(8, rounding="stochastic")),
    "top random": chain(TopK(1 / 8, 64), RandomK(2, unbiased=False)),
}
SHAPES = [(), (0,), (1,), (7,), (3, 5), (4096,), (4097,), (33, 257), (2, 3, 4, 5)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]

every_codec = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS.keys())


def gaussian(shape, dtype=torch.float32, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def hard(name):
    """Tensors that are hard on a codec."""
    x = gaussian((9000,))
    match name:
        case "gaussian":
            return x
        case "heavy":
            return x.sign() * x.abs() ** 6
        case "one":
            return torch.where(torch.arange(9000) == 4321, 3.0, 0.0)
        case "constant":
            return torch.full((9000,), -0.3)
        case "one of a thousand":
            return x * (torch.arange(9000) % 1000 == 0) + 1e-3
        case "tiny":
            return x * 1e-20
        case "huge":
            return x * 1e30


@every_codec
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_shape_type_and_bytes(codec, dtype, shape):
    x = gaussian(shape, dtype)
    payload = codec.encode(x)
    y = codec.decode(payload, like=x)
    assert y.shape == x.shape
    assert y.dtype == dtype
    buffer = payload.to_buffer()
    assert payload.nbytes == buffer.numel()
    predicted = codec.predicted_bytes(x.shape, dtype)
    assert payload.nbytes == predicted if codec.exact_size else payload.nbytes <= predicted
    assert codec.bits_per_value(x.shape, dtype) == 8 * predicted / max(1, x.numel())
    assert torch.equal(codec.decode(Payload.from_buffer(buffer), like=x), y)


@every_codec
def test_the_same_again(codec):
    x = gaussian((9000,))
    one, two = codec.encode(x, seed=5), codec.encode(x.clone(), seed=5)
    assert torch.equal(one.to_buffer(), two.to_buffer())
    assert torch.equal(codec.decode(one, like=x), codec.decode(two, like=x))


@every_codec
@pytest.mark.parametrize("name", ["gaussian", "heavy", "one", "constant", "one of a thousand", "tiny", "huge"])
def test_contraction(codec, name):
    x = hard(name)
    factor = codec.contraction(x.numel())
    assert 0 <= factor <= 1
    error = (codec.decode(codec.encode(x), like=x).double() - x.double()).square().sum()
    energy = x.double().square().sum()
    if codec.unbiased and not factor:
        assert torch.isfinite(error)  # its promise is the next test
    else:
        assert error <= (1 - factor) * energy * (1 + 1e-6) + 1e-12 * energy


@pytest.mark.parametrize("name", [name for name, codec in CODECS.items() if codec.unbiased])
def test_unbiased(name):
    codec, rounds = CODECS[name], 400
    x = gaussian((520,))
    drawn = torch.stack([codec.decode(codec.encode(x, seed=seed), like=x).double() for seed in range(rounds)])
    spread = drawn.var(0).sum().sqrt() / math.sqrt(rounds)
    # The length of the mean's error is about its standard deviation over all coordinates.
    assert (drawn.mean(0) - x).norm() <= 1.3 * spread + 1e-6


@every_codec
def test_zeros_stay_zeros(codec):
    x = torch.zeros(5000)
    assert not codec.decode(codec.encode(x), like=x).any()


@every_codec
def test_broken_values_stay_visible(codec):
    x = gaussian((5000,))
    x[1234] = math.nan
    y = codec.decode(codec.encode(x), like=x)
    if not any(isinstance(stage, RandomK) for stage in codec.stages):
        assert y.isnan().any()


@every_codec
def test_linear_payloads_may_be_summed(codec):
    x, y = gaussian((1000,)), gaussian((1000,), seed=2)
    if codec.linear:
        one, two = (codec.encode(t, seed=9) for t in (x, y))
        total = one.parts[-1].view(torch.float32) + two.parts[-1].view(torch.float32)
        summed = Payload((total.view(torch.uint8),), one.numel, one.codec, one.seed)
        apart = codec.decode(one, like=x) + codec.decode(two, like=y)
        torch.testing.assert_close(codec.decode(summed, like=x), apart)
    else:
        assert codec.encode(x).parts[-1].dtype == torch.uint8


@every_codec
@pytest.mark.parametrize("numel", [1, 5000])
def test_cut_off_or_changed_on_the_way(codec, numel):
    buffer = codec.encode(gaussian((numel,))).to_buffer()
    for length in {0, 3, 27, 28, 30, len(buffer) // 2, len(buffer) - 1} - {len(buffer)}:
        with pytest.raises(ThriftyError, match=r"payload: (cut off|too long)"):
            Payload.from_buffer(buffer[:length])
    with pytest.raises(ThriftyError, match="too long"):
        Payload.from_buffer(torch.cat([buffer, buffer[:1]]))
    for place in {*range(min(44, len(buffer))), len(buffer) // 2, len(buffer) - 1}:
        changed = buffer.clone()
        changed[place] ^= 0x10
        with pytest.raises(ThriftyError, match="payload"):
            Payload.from_buffer(changed)


@every_codec
def test_a_payload_put_together_wrongly(codec):
    x = gaussian((5000,))
    payload = codec.encode(x)
    for place, part in enumerate(payload.parts):
        for wrong in (part[:-1], part[:0], torch.cat([part, part[:1]])):
            if not part.numel():
                continue
            parts = (*payload.parts[:place], wrong, *payload.parts[place + 1 :])
            with pytest.raises(ThriftyError, match=r"expected|values|indices|broken|cut off"):
                codec.decode(Payload(parts, payload.numel, payload.codec, payload.seed), like=x)
    with pytest.raises(ThriftyError, match="parts"):
        codec.decode(Payload((*payload.parts, payload.parts[0]), payload.numel, payload.codec), like=x)
    with pytest.raises(ThriftyError, match="asked for"):
        codec.decode(payload, like=x[1:])
    with pytest.raises(ThriftyError, match="another codec"):
        codec.decode(Payload(payload.parts, payload.numel, payload.codec ^ 1), like=x)


@every_codec
def test_random_bytes_in_place_of_parts_end_in_an_error_or_a_tensor(codec):
    x = gaussian((5000,))
    payload = codec.encode(x)
    generator = torch.Generator().manual_seed(4)
    for _ in range(20):
        noise = tuple(
            torch.randint(0, 256, part.shape, generator=generator, dtype=torch.uint8) for part in payload.parts
        )
        try:
            y = codec.decode(Payload(noise, payload.numel, payload.codec, payload.seed), like=x)
        except ThriftyError as error:
            assert error.where == "payload"  # noqa: PT017
        else:
            assert y.shape == x.shape


def test_identity_and_zstd_are_bit_equal():
    x = gaussian((999,), torch.bfloat16)
    x[3], x[4], x[5] = math.nan, math.inf, -0.0
    for codec in (Identity(), Zstd()):
        assert torch.equal(codec.decode(codec.encode(x), like=x).view(torch.int16), x.view(torch.int16))


@pytest.mark.parametrize("form", ["bf16", "fp16"])
def test_sixteen_bits_saturate_and_leave_what_is_broken(form):
    x = torch.tensor([3.4e38, -3.4e38, math.inf, -math.inf, math.nan, 1.0])
    y = Cast(form).decode(Cast(form).encode(x), like=x)
    assert torch.isfinite(y[:2]).all()
    assert torch.equal(y[2:4], x[2:4])
    assert y[4].isnan()
    z = gaussian((1000,))
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[form]
    assert torch.equal(Cast(form).decode(Cast(form).encode(z), like=z), z.to(dtype).float())


def test_sparse_two_bits_take_at_most_sixteen_hundredths_of_a_bit():
    x = gaussian((1 << 20,))
    payload = chain(TopK(1 / 64), Blockwise(2), Zstd()).encode(x)
    assert 8 * payload.nbytes / x.numel() <= 0.16


def test_floats_shrink_in_planes():
    x = gaussian((1 << 19,), torch.bfloat16)
    assert Zstd().encode(x).nbytes < 2 * x.numel() / 1.4


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: chain(Blockwise(8), TopK(0.1)), "cannot follow"),
        (lambda: chain(Zstd(), Blockwise(8)), "cannot follow"),
        (lambda: TopK(0), "TopK keeps"),
        (lambda: TopK(0.5, 0), "TopK keeps"),
        (lambda: Threshold(1.5), "Threshold keeps"),
        (lambda: KMeans(100), "powers of two"),
        (lambda: KMeans(256, 5), "multiple of"),
        (lambda: KMeans(codebook=b"1"), "codebook"),
        (lambda: RandomK(0), "RandomK"),
        (lambda: Cast("bf8"), "did you mean"),
        (lambda: Blockwise(5), "no block format"),
        (lambda: Blockwise(8, block=3), "multiples of 8"),
        (lambda: Blockwise(1, rounding="stochastic"), "unequal"),
        (lambda: Identity().encode(torch.arange(3)), "only float"),
    ],
)
def test_mistakes_are_explained(make, told):
    with pytest.raises(ThriftyError, match=told):
        make()
