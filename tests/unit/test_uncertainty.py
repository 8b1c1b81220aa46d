"""Streamed maps against the definitions in float64, and against values worked out by hand."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dal_dense import uncertainty
from dal_dense.pieces import ON_CPU
from dal_dense.uncertainty import MAPS, DrawSums

SEEDS = st.integers(0, 2**31)


def stack(seed: int, draws: int, classes: int, grid: tuple[int, ...], sharp: float = 2.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(draws, classes, *grid, generator=generator, dtype=torch.float64)
    return torch.softmax(sharp * logits, 1)


def streamed(draws: torch.Tensor) -> DrawSums:
    sums = DrawSums()
    for draw in draws:
        sums.add(draw)
    return sums


def defined(draws: torch.Tensor) -> dict[str, torch.Tensor]:
    """Every map in float64 by its definition."""
    top = draws.double().mean(0).topk(2, 0).values
    return {
        "predictive_entropy": uncertainty.predictive_entropy(draws.double()),
        "expected_entropy": uncertainty.expected_entropy(draws.double()),
        "mutual_information": uncertainty.mutual_information(draws.double()),
        "margin": 1 - (top[0] - top[1]),
        "least_confidence": 1 - top[0],
    }


def assert_as_defined(draws: torch.Tensor) -> None:
    mean, maps = streamed(draws).finish(MAPS)
    expected = defined(draws)
    assert set(maps) == set(expected)
    torch.testing.assert_close(mean.double(), draws.double().mean(0), atol=1e-6, rtol=0)
    for name, values in maps.items():
        assert values.dtype == torch.float32
        assert (values >= 0).all()
        # bfloat16 probabilities do not sum to 1, so that a margin or an information may lie outside its bounds
        exact = expected[name].clamp_min(0) if name != "margin" else expected[name].clamp(0, 1)
        torch.testing.assert_close(values.double(), exact, atol=3e-6, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


@settings(deadline=None)
@given(
    SEEDS,
    st.integers(1, 8),
    st.integers(2, 6),
    st.sampled_from([(7,), (3, 5), (2, 3, 4)]),
    st.floats(0.1, 100),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
)
def test_streamed_maps_equal_the_definitions(
    seed: int, n: int, classes: int, grid: tuple[int, ...], sharp: float, dtype: torch.dtype
) -> None:
    assert_as_defined(stack(seed, n, classes, grid, sharp).to(dtype))


@pytest.mark.parametrize("voxels", [1, ON_CPU - 1, ON_CPU, ON_CPU + 1, 2 * ON_CPU + 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_maps_where_one_piece_ends_and_the_next_begins(voxels: int, dtype: torch.dtype) -> None:
    draws = stack(voxels, 2, 3, (voxels,)).to(dtype)
    assert_as_defined(draws)
    assert torch.equal(uncertainty.likeliest(draws[0]).long(), draws[0].argmax(0))


def test_torch_alone_makes_the_same_maps() -> None:
    """What is done on other devices."""
    draws = stack(4, 3, 5, (500,)).float()
    mean, maps = streamed(draws).finish(MAPS)
    plain = uncertainty._Piece(mean, uncertainty.expected_entropy(draws), scratch=None)
    for name, values in maps.items():
        MAPS[name](plain, out := torch.empty(500))
        torch.testing.assert_close(values, out, atol=1e-6, rtol=0)


def test_threads_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = stack(3, 2, 3, (13, ON_CPU + 5)).float()
    one, maps = streamed(draws).finish(MAPS)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    other, others = streamed(draws).finish(MAPS)
    assert torch.equal(one, other)
    assert all(torch.equal(maps[name], others[name]) for name in MAPS)


def test_draws_need_not_be_contiguous() -> None:
    whole = stack(5, 2, 3, (9, 8, 7)).float()
    classes_last = whole.movedim(1, 4).contiguous().movedim(4, 1)
    assert uncertainty._flat(classes_last[0]).stride(1) == 3
    for draws in (whole.movedim(2, 4), whole[:, :, 2:5], whole[..., 1::2], classes_last):
        assert_as_defined(draws)


def test_a_draw_of_any_type_may_hold_a_gradient() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        mean, _ = streamed(torch.full((1, 2, 4), 0.5, dtype=dtype, requires_grad=True)).finish()
        assert mean.tolist() == [[0.5] * 4] * 2
        assert not mean.requires_grad


def test_zeros_in_one_piece_change_nothing_in_the_next() -> None:
    """The logarithm of 0 may be infinite; where a piece has shown some, the next ones are read in another way."""
    smallest = torch.tensor([1e-45, 1e-40, 1e-38, 0.3]).repeat(ON_CPU // 4)
    later, first = torch.stack([smallest, 1 - smallest]), torch.full((2, ON_CPU), 0.5)
    one = first.clone()
    one[:, 7] = torch.tensor([0.0, 1.0])
    found = [uncertainty.entropy(torch.cat([piece, later, piece], 1)) for piece in (first, one)]
    assert torch.equal(found[0][ON_CPU : 2 * ON_CPU], found[1][ON_CPU : 2 * ON_CPU])
    assert found[1][7] == 0 and found[1].isfinite().all()


@pytest.mark.parametrize("name", MAPS)
def test_nan_in_a_draw_is_seen_in_the_map_and_nowhere_else(name: str) -> None:
    draws = stack(6, 3, 4, (ON_CPU + 9,)).float()
    draws[1, 2, ON_CPU + 3] = math.nan
    mean, maps = streamed(draws).finish([name])
    assert maps[name].isnan().nonzero().flatten().tolist() == [ON_CPU + 3]
    assert mean.isnan().nonzero().tolist() == [[2, ON_CPU + 3]]


@pytest.mark.parametrize(
    "some",
    [
        ("mutual_information",),
        ("mutual_information", "expected_entropy"),
        ("mutual_information", "mutual_information"),
        ("margin",),
        ("margin", "predictive_entropy", "least_confidence", "mutual_information"),
        ("predictive_entropy", "margin", "mutual_information", "least_confidence"),
        (),
    ],
)
def test_a_map_is_the_same_whatever_else_is_asked_for(some: tuple[str, ...]) -> None:
    draws = stack(7, 3, 4, (500,)).float()
    every = streamed(draws).finish(MAPS)[1]
    maps = streamed(draws).finish(some)[1]
    assert list(maps) == list(dict.fromkeys(some))
    assert all(torch.allclose(maps[name], every[name], atol=1e-7, rtol=0) for name in some)


def test_values_by_hand() -> None:
    """Two draws that are sure of opposite classes; two that agree on a fair coin; one voxel that is sure."""
    first = torch.tensor([[1.0, 0.5, 1.0], [0.0, 0.5, 0.0]])
    second = torch.tensor([[0.0, 0.5, 1.0], [1.0, 0.5, 0.0]])
    maps = streamed(torch.stack([first, second])).finish(MAPS)[1]
    ln2 = math.log(2)
    torch.testing.assert_close(maps["predictive_entropy"], torch.tensor([ln2, ln2, 0.0]))
    torch.testing.assert_close(maps["expected_entropy"], torch.tensor([0.0, ln2, 0.0]))
    torch.testing.assert_close(maps["mutual_information"], torch.tensor([ln2, 0.0, 0.0]))
    torch.testing.assert_close(maps["margin"], torch.tensor([1.0, 1.0, 0.0]))
    torch.testing.assert_close(maps["least_confidence"], torch.tensor([0.5, 0.5, 0.0]))


def test_three_classes_by_hand() -> None:
    maps = streamed(torch.tensor([[[0.5], [0.3], [0.2]]])).finish(MAPS)[1]
    assert maps["predictive_entropy"].item() == pytest.approx(1.0296530, abs=1e-6)
    assert maps["margin"].item() == pytest.approx(0.8)
    assert maps["least_confidence"].item() == pytest.approx(0.5)


@settings(deadline=None)
@given(SEEDS, st.integers(2, 5))
def test_likeliest_is_argmax_with_ties_to_the_lower_class(seed: int, classes: int) -> None:
    probs = torch.randint(0, 3, (classes, 50), generator=torch.Generator().manual_seed(seed)).float()
    assert torch.equal(uncertainty.likeliest(probs).long(), probs.argmax(0))


def test_many_equal_draws_have_no_mutual_information() -> None:
    """256 float32 sums keep their accuracy; without the clamp some values would lie below 0."""
    draw = stack(0, 1, 4, (1000,)).float()[0]
    maps = streamed(draw.expand(256, -1, -1)).finish(["mutual_information"])[1]
    assert maps["mutual_information"].min() >= 0
    assert maps["mutual_information"].max() < 1e-5


def test_draws_are_not_kept_nor_changed() -> None:
    draw = stack(0, 1, 3, (4, 4)).float()[0]
    before = draw.clone()
    sums = DrawSums()
    sums.add(draw)
    sums.add(draw)
    assert torch.equal(draw, before)
    torch.testing.assert_close(sums.finish(MAPS)[0], before)
    assert torch.equal(draw, before)
    sums.add(draw)
    draw.zero_()
    torch.testing.assert_close(sums.finish()[0], before)


def test_sums_are_given_away_and_begun_anew() -> None:
    one, other = stack(8, 2, 3, (6,)).float()
    sums = DrawSums()
    sums.add(one)
    first, _ = sums.finish()
    assert sums.count == 0
    sums.add(other)
    assert torch.equal(sums.finish()[0], other)
    assert torch.equal(first, one)


def test_half_precision_draws_are_summed_in_float32() -> None:
    draws = stack(1, 64, 3, (500,)).to(torch.bfloat16)
    torch.testing.assert_close(streamed(draws).finish()[0], draws.float().mean(0), atol=1e-6, rtol=0)


def test_refusals() -> None:
    sums = DrawSums()
    with pytest.raises(ValueError, match="no draw was added"):
        sums.finish()
    with pytest.raises(ValueError, match="classes >= 2"):
        sums.add(torch.ones(1, 4))
    sums.add(torch.ones(2, 4) / 2)
    with pytest.raises(ValueError, match=r"draw 1 is \(2, 5\), the first \(2, 4\)"):
        sums.add(torch.ones(2, 5) / 2)
    with pytest.raises(ValueError, match="no uncertainty map is called 'bald'; there are predictive_entropy"):
        sums.finish(["bald"])
    assert sums.finish()[0].shape == (2, 4)  # a wrong name costs nothing


def in_a_process_of_its_own(code: str, **variables: str) -> str:
    root = str(Path(__file__).parents[2])
    paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": paths, **variables}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


MEMORY = """
import torch
from dal_dense import candidates
from dal_dense.regions import Regions
from dal_dense.uncertainty import DrawSums

def status(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) / 1024

torch.set_num_threads(2)
draw = torch.rand(8, 128, 128, 128)  # 64 MiB
for part in draw.unbind(1):
    part /= part.sum(0)
for _ in range(2):  # the first time brings code into memory
    open("/proc/self/clear_refs", "w").write("5")
    before, sums = status("VmRSS"), DrawSums()
    for _ in range(3):
        sums.add(draw)
    mean, maps = sums.finish(["predictive_entropy", "mutual_information"])
    boxes = candidates.peak_boxes(mean[1], (32,) * 3, 1, 5, Regions.of([], 3), weight=maps["predictive_entropy"])
    rise = status("VmHWM") - before
    del mean, maps, sums
print(len(boxes), rise)
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's record of peak memory")
def test_there_is_never_a_second_tensor_of_the_size_of_a_draw() -> None:
    """Sums, maps and box means: 64 + 8 + 8 + 12 MiB, and two threads' rows; a draw: 64 more.

    What is freed goes back at once: malloc else keeps up to 25 MiB of it, more or less by chance.
    """
    malloc = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    boxes, rise = in_a_process_of_its_own(MEMORY, **malloc).split()
    assert int(boxes) == 5
    assert 80 < float(rise) < 64 + 8 + 8 + 12 + 12


def test_plain_accumulation_says_the_same() -> None:
    draws = stack(9, 3, 4, (5, 6)).float()
    total, entropies = torch.zeros(4, 5, 6), torch.zeros(5, 6)
    for draw in draws:
        uncertainty.accumulate_plainly(draw, total, entropies)
    mean, maps = streamed(draws).finish(["expected_entropy"])
    torch.testing.assert_close(total / 3, mean)
    torch.testing.assert_close(entropies / 3, maps["expected_entropy"])


KERNEL = """
import torch
from dal_dense import uncertainty, uncertainty_triton

generator = torch.Generator().manual_seed(0)
worst = 0.0
for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
    for classes, voxels, apart in ((2, 1, 0), (5, 1024, 0), (3, 2049, 7)):
        base = torch.softmax(4 * torch.randn(classes, voxels + apart, generator=generator), 0).to(dtype)
        probs = base[:, :voxels]
        probs[:, 0] = torch.eye(classes)[0]
        total, entropies = torch.rand(classes, voxels, generator=generator), torch.rand(voxels, generator=generator)
        plain = total.clone(), entropies.clone()
        uncertainty_triton.accumulate(probs, total, entropies)
        uncertainty.accumulate_plainly(probs, *plain)
        assert torch.equal(total, plain[0]), (dtype, voxels)
        worst = max(worst, float((entropies - plain[1]).abs().max()))
apart = torch.softmax(torch.randn(4, 5, 6, 3, generator=generator), 3).movedim(3, 0)  # channels last
flat = uncertainty._flat(apart)
assert flat.stride(1) == 3
total, entropies = torch.zeros(3, 120), torch.zeros(120)
uncertainty_triton.accumulate(flat, total, entropies)
assert torch.equal(total, flat)
worst = max(worst, float((entropies - uncertainty.entropy_plainly(flat)).abs().max()))
total, entropies = torch.zeros(3, voxels), torch.zeros(voxels)
probs[1, 5] = float("nan")
uncertainty_triton.accumulate(probs, total, entropies)
assert entropies.isnan().nonzero().tolist() == [[5]] and total.isnan().nonzero().tolist() == [[1, 5]]
print(worst)
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernel itself runs in the tests marked gpu")
def test_the_kernel_says_the_same_in_tritons_interpreter() -> None:
    pytest.importorskip("triton")
    assert float(in_a_process_of_its_own(KERNEL, TRITON_INTERPRET="1")) < 1e-6


def run_once(monkeypatch: pytest.MonkeyPatch, problem: Exception | None) -> object:
    """What `_kernel` comes to on a machine where the kernel's first run ends so."""
    triton = pytest.importorskip("dal_dense.uncertainty_triton")
    zeros = torch.zeros

    def accumulate(*given: torch.Tensor) -> None:
        if problem is not None:
            raise problem

    with monkeypatch.context() as patch:
        patch.setattr(torch, "zeros", lambda *shape, device: zeros(*shape))
        patch.setattr(triton, "accumulate", accumulate)
        return uncertainty._kernel.__wrapped__()


def test_where_the_kernel_cannot_run_plain_torch_is_used_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = pytest.importorskip("triton.runtime.errors")
    for problem in (
        RuntimeError("Failed to find C compiler. Please specify"),
        errors.PTXASError("no ptxas"),
        FileNotFoundError("libcuda"),
        subprocess.CalledProcessError(1, "gcc"),
    ):
        with pytest.warns(UserWarning, match="summed by plain torch"):
            assert run_once(monkeypatch, problem) is None
    assert run_once(monkeypatch, None) is not None
    monkeypatch.delattr("dal_dense.uncertainty_triton")
    monkeypatch.setitem(sys.modules, "dal_dense.uncertainty_triton", None)
    with pytest.warns(UserWarning, match="summed by plain torch"):
        assert uncertainty._kernel.__wrapped__() is None


def test_short_memory_does_not_switch_the_kernel_off(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        run_once(monkeypatch, torch.OutOfMemoryError("CUDA out of memory"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_maps_on_a_device_by_plain_torch(
    dtype: torch.dtype, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uncertainty, "_kernel", lambda: None)
    are_right(stack(2, 5, 6, (70, 80, 90)).to(dtype), device)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_maps_on_a_gpu_by_the_kernel(dtype: torch.dtype) -> None:
    pytest.importorskip("triton")
    assert uncertainty._kernel() is not None
    are_right(stack(2, 5, 6, (70, 80, 90)).to(dtype), torch.device("cuda"))


def are_right(draws: torch.Tensor, device: torch.device) -> None:
    """The maps that come of these draws on a device."""
    mean, maps = streamed(draws.to(device)).finish(MAPS)
    expected = defined(draws)
    torch.testing.assert_close(mean.cpu().double(), draws.double().mean(0), atol=1e-6, rtol=0)
    for name, values in maps.items():
        assert values.is_cuda
        torch.testing.assert_close(values.cpu().double(), expected[name].clamp_min(0), atol=3e-6, rtol=0)
    assert torch.equal(uncertainty.likeliest(draws[0].to(device)).cpu().long(), draws[0].argmax(0))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_sums_on_a_gpu_are_the_same_every_time() -> None:
    draws = stack(4, 3, 14, (100_001,)).float().cuda()
    one, other = (streamed(draws).finish(["mutual_information"]) for _ in range(2))
    assert torch.equal(one[0], other[0]) and torch.equal(one[1]["mutual_information"], other[1]["mutual_information"])
