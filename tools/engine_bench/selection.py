"""Cases: choosing rows for diversity and for what they stand for, and comparing frames object by object."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dal_dense.acquire.matching import matching_distance
from dal_dense.offers import Parts
from dal_dense.select import FacilityLocation, KCenter, badge, pick
from engine_bench.case import Case, Way

WIDTH = 256
SEED = 0


def mixture(count: int, device: str) -> Tensor:
    """Features from 50 Gaussians of unit width, float32."""
    gen = torch.Generator().manual_seed(SEED)
    centres = 2 * torch.randn(50, WIDTH, generator=gen)
    return (centres[torch.randint(0, 50, (count,), generator=gen)] + torch.randn(count, WIDTH, generator=gen)).to(
        device
    )


# --- k-centre

LABELLED, CENTRES = 1000, 1000
MANY_CENTRES = 10_000


def k_center_ours(x: Tensor, count: int = CENTRES) -> Tensor:
    """Only the farthest rows are kept up to date."""
    allowed = torch.arange(len(x), device=x.device) >= LABELLED
    return pick(KCenter(x, x[:LABELLED]), allowed, count)


def k_center_plain(x: Tensor, count: int = CENTRES) -> Tensor:
    """The distance of every row to the nearest centre, brought up to date at each pick."""
    norm = (x * x).sum(1)
    near = torch.full_like(norm, torch.inf)
    for part in x[:LABELLED].split(100):
        near = torch.minimum(near, (norm[:, None] + (part * part).sum(1) - 2 * (x @ part.T)).amin(1))
    rows = []
    for _ in range(count):
        row = int(near[LABELLED:].argmax()) + LABELLED
        near = torch.minimum(near, norm + norm[row] - 2 * (x @ x[row]))
        rows.append(row)
    return torch.tensor(rows)


def k_center_mundig(x: Tensor) -> Tensor:
    """lightly-mundig, a diversifying strategy alone."""
    import lightly_mundig

    selection = lightly_mundig.Selection()
    selection.add_diversifying_strategy(x.numpy(), 1.0)
    return torch.tensor(selection.run_selection(list(range(LABELLED)), len(x), LABELLED + CENTRES)[LABELLED:])


def k_center_skactiveml(x: Tensor) -> Tensor:
    """scikit-activeml's CoreSet."""
    import numpy as np
    from skactiveml.pool import CoreSet

    y = np.full(len(x), np.nan)
    y[:LABELLED] = 0
    return torch.from_numpy(CoreSet(random_state=SEED).query(x.numpy(), y, batch_size=CENTRES))


def cover_radius(x: Tensor, rows: Tensor) -> dict[str, float]:
    """The largest distance to the nearest centre, by differences."""
    centres = torch.cat([x[:LABELLED], x[rows.to(x.device)]])
    far = [torch.cdist(part, centres).amin(1).topk(min(5, len(part))) for part in x.split(2000)]
    rows = torch.cat([f.indices + 2000 * n for n, f in enumerate(far)])[torch.cat([f.values for f in far]).topk(50)[1]]
    exact = torch.cdist(x[rows].double(), centres.double(), compute_mode="donot_use_mm_for_euclid_dist")
    return {"cover radius": float(exact.amin(1).max())}


# --- facility location

REPRESENTATIVES = 200


def facility_ours(x: Tensor) -> Tensor:
    """Exact gains without the matrix."""
    return pick(FacilityLocation(x, x[:0]), torch.ones_like(x[:, 0], dtype=torch.bool), REPRESENTATIVES)


def facility_plain(x: Tensor) -> Tensor:
    """Lazy greedy without the matrix: the 64 best bounds are looked at again until the best is up to date."""
    unit = torch.nn.functional.normalize(x, dim=1)
    held = torch.zeros_like(x[:, 0])

    def gains(rows: Tensor) -> Tensor:
        return torch.cat([(unit[p] @ unit.T - held).clamp_min(0).sum(1) for p in rows.split(256)]).double()

    gain = gains(torch.arange(len(x), device=x.device))
    seen = torch.zeros_like(gain)
    rows: list[int] = []
    while len(rows) < REPRESENTATIVES:
        best = int(gain.argmax())
        if seen[best] == len(rows):
            rows.append(best)
            held = torch.maximum(held, unit @ unit[best])
            gain[best] = -1
            continue
        top = gain.topk(64).indices
        stale = top[seen[top] < len(rows)]
        gain[stale] = gains(stale)
        seen[stale] = len(rows)
    return torch.tensor(rows)


def cosines(x: Tensor) -> Any:
    """The matrix of similarities that the packages want; the same similarity as ours."""
    unit = torch.nn.functional.normalize(x, dim=1)
    return (unit @ unit.T).clamp_min(0).numpy()


def facility_apricot(x: Tensor) -> Tensor:
    """apricot, lazy greedy over the matrix; its numba functions are compiled anew in every process."""
    import apricot

    found = apricot.FacilityLocationSelection(REPRESENTATIVES, metric="precomputed").fit(cosines(x))
    return torch.from_numpy(found.ranking)


def facility_submodlib(x: Tensor) -> Tensor:
    """submodlib, lazy greedy in C++ over the matrix."""
    import submodlib

    made = submodlib.FacilityLocationFunction(n=len(x), mode="dense", separate_rep=False, sijs=cosines(x))
    found = made.maximize(budget=REPRESENTATIVES, optimizer="LazyGreedy", show_progress=False)
    return torch.tensor([row for row, _ in found])


def objective(x: Tensor, rows: Tensor) -> dict[str, float]:
    """Sum over the rows of the cosine of the most similar pick, in float64."""
    unit = torch.nn.functional.normalize(x.double(), dim=1)
    return {"objective": float((unit @ unit[rows.to(x.device)].T).amax(1).clamp_min(0).sum())}


# --- BADGE

BATCH, CLASSES = 100, 10


def features_and_residuals(device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Features, probabilities less the one-hot vector of the likeliest class, probabilities."""
    x = mixture(20_000, device)
    head = torch.randn(WIDTH, CLASSES, generator=torch.Generator().manual_seed(1)).to(device) / WIDTH**0.5
    probs = (x @ head).softmax(1)
    return x, probs - torch.nn.functional.one_hot(probs.argmax(1), CLASSES), probs


def badge_ours(inputs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Factored, with draws keyed by row."""
    x, residual, _ = inputs
    key = torch.arange(len(x), device=x.device)
    return pick(badge(residual, x, key, SEED), torch.ones_like(key, dtype=torch.bool), BATCH)


def badge_plain(inputs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """The gradients written out, k-means++ on them."""
    x, residual, _ = inputs
    gen = torch.Generator().manual_seed(SEED)
    gradient = (residual[:, :, None] * x[:, None]).flatten(1)
    rows = [int(gradient.square().sum(1).argmax())]
    far = (gradient - gradient[rows[0]]).square().sum(1)
    for _ in range(BATCH - 1):
        rows.append(int(torch.multinomial(far, 1, generator=gen)))
        far = torch.minimum(far, (gradient - gradient[rows[-1]]).square().sum(1))
    return torch.tensor(rows)


def badge_skactiveml(inputs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """scikit-activeml's Badge, with a classifier that returns the probabilities and the features."""
    import numpy as np
    from skactiveml.base import SkactivemlClassifier
    from skactiveml.pool import Badge

    x, _, probs = (t.numpy() for t in inputs)

    class Known(SkactivemlClassifier):  # type: ignore[misc]
        def fit(self, x: Any, y: Any, sample_weight: Any = None) -> Known:
            return self

        def predict_proba(self, x: Any) -> Any:
            return probs, x

    query = Badge(random_state=SEED).query(
        x, np.full(len(x), np.nan), clf=Known(classes=range(CLASSES)), fit_clf=False, batch_size=BATCH
    )
    return torch.as_tensor(np.array(query))


def potential(inputs: tuple[Tensor, Tensor, Tensor], rows: Tensor) -> dict[str, float]:
    """k-means++'s potential: the mean squared distance of gradients to the nearest pick."""
    x, residual = (t.double() for t in inputs[:2])
    length, rows = residual.square().sum(1) * x.square().sum(1), rows.to(x.device)
    inner = (residual @ residual[rows].T) * (x @ x[rows].T)
    return {"potential": float((length[:, None] + length[rows] - 2 * inner).amin(1).clamp_min(0).mean())}


# --- class-conditional matching

FRAMES, MORE_FRAMES, OBJECTS, KINDS = 2000, 9464, 100, 20
PAIRS = 1000


@dataclass(frozen=True)
class Sampled:
    """Distances of some pairs (P, 2), and what all pairs would take."""

    pairs: Tensor
    distances: Tensor
    cpu: float


def objects(device: str, frames: int = FRAMES) -> Parts:
    """Detections, 100 a frame, of 20 classes alike in number."""
    gen = torch.Generator().manual_seed(SEED)
    count = frames * OBJECTS
    return Parts(
        torch.arange(frames).repeat_interleave(OBJECTS),
        torch.randint(1, KINDS + 1, (count,), generator=gen),
        torch.rand(count, generator=gen),
        torch.randn(count, WIDTH, generator=gen),
    ).to(device)


def matching_ours(parts: Parts) -> Tensor:
    """By class, blocks of frames against blocks of frames."""
    return matching_distance(parts, len(parts.row) // OBJECTS)


def matching_loop(parts: Parts) -> Sampled:
    """Pair by pair, for 1,000 of them."""
    frames = len(parts.row) // OBJECTS
    gen = torch.Generator().manual_seed(1)
    pairs = torch.randint(0, frames, (PAIRS, 2), generator=gen)
    pairs[:, 1] = (pairs[:, 0] + 1 + pairs[:, 1] % (frames - 1)) % frames
    unit = torch.nn.functional.normalize(parts.embedding, dim=1)
    began, found = time.process_time(), []
    for i, j in pairs.tolist():
        a, b = slice(i * OBJECTS, (i + 1) * OBJECTS), slice(j * OBJECTS, (j + 1) * OBJECTS)
        same = parts.classes[a, None] == parts.classes[b]
        alike = torch.where(same, unit[a] @ unit[b].T, -1.0)  # nobody to match: as far as opposite features
        there = ((1 - alike.amax(1)) * parts.weight[a]).sum() / parts.weight[a].sum()
        back = ((1 - alike.amax(0)) * parts.weight[b]).sum() / parts.weight[b].sum()
        found.append(float(there + back) / 2)
    every = frames * (frames - 1) / 2 / PAIRS
    return Sampled(pairs, torch.tensor(found), every * (time.process_time() - began))


def matching_error(parts: Parts, result: Tensor | Sampled) -> dict[str, float]:
    """The largest error in 20 pairs, in float64; for the loop also what all pairs would take."""
    some = matching_loop(Parts(parts.row, parts.classes, parts.weight.double(), parts.embedding.double()).to("cpu"))
    if isinstance(result, Sampled):
        error = float((result.distances.double() - some.distances.double()).abs().max())
        return {"largest error": error, "CPU s for all pairs, from this sample": result.cpu}
    ours = result.cpu()[some.pairs[:, 0], some.pairs[:, 1]]
    return {"largest error": float((ours.double() - some.distances.double()).abs().max())}


CASES: tuple[Case, ...] = (
    Case(
        name="k-center",
        work="200,000 x 256 features, 1,000 rows labelled, 1,000 picked",
        goal="no more CPU time than lightly-mundig, at most 200 MiB; on a GPU at most 1 s",
        make=lambda device: mixture(200_000, device),
        ways={
            "dal_dense": Way(k_center_ours, cuda=True),
            "plain torch": Way(k_center_plain, cuda=True),
            "lightly-mundig": Way(k_center_mundig, needs="lightly_mundig", peer=True),
            "scikit-activeml": Way(k_center_skactiveml, needs="skactiveml", peer=True),
        },
        judge=cover_radius,
    ),
    Case(
        name="k-center 10^6",
        work="1,000,000 x 256 features, 1,000 rows labelled, 10,000 picked",
        goal="on a GPU at most 5 s",
        make=lambda device: mixture(10**6, device),
        ways={
            "dal_dense": Way(lambda x: k_center_ours(x, MANY_CENTRES), cuda=True, cpu=False),
            "plain torch": Way(lambda x: k_center_plain(x, MANY_CENTRES), cuda=True, cpu=False),
        },
        judge=cover_radius,
    ),
    Case(
        name="facility-location",
        work="10,000 x 256 features, 200 picked; similarity is the cosine, 0 where it is negative",
        goal="at most half the time of apricot and submodlib, at most 100 MiB, the objective within 0.1 %",
        make=lambda device: mixture(10_000, device),
        ways={
            "dal_dense": Way(facility_ours, cuda=True),
            "plain torch, lazy": Way(facility_plain),
            "apricot": Way(facility_apricot, needs="apricot", peer=True),
            "submodlib": Way(facility_submodlib, needs="submodlib", peer=True),
        },
        judge=objective,
    ),
    Case(
        name="facility-location 10^6",
        work="1,000,000 x 256 features, 200 picked",
        goal="feasible: 10^12 similarities are looked at several times, and none is kept",
        make=lambda device: mixture(10**6, device),
        ways={"dal_dense": Way(facility_ours, cuda=True, cpu=False)},
        judge=objective,
        once=True,
    ),
    Case(
        name="badge",
        work="20,000 x 256 features, 10 classes, 100 picked",
        goal="at most a twentieth of scikit-activeml's CPU time; the picks are draws, so potentials differ by chance",
        make=features_and_residuals,
        ways={
            "dal_dense": Way(badge_ours, cuda=True),
            "plain torch": Way(badge_plain),
            "scikit-activeml": Way(badge_skactiveml, needs="skactiveml", peer=True),
        },
        judge=potential,
    ),
    Case(
        name="matching",
        work="2,000 frames with 100 detections of 256 features in 20 classes (as in VOC), every pair compared",
        goal="at most a thirtieth of the loop's CPU time, which is reckoned from 1,000 of 1,999,000 pairs",
        make=objects,
        ways={"dal_dense": Way(matching_ours, cuda=True), "loop over pairs, a sample": Way(matching_loop)},
        judge=matching_error,
    ),
    Case(
        name="matching 9,464",
        work="9,464 frames with 100 detections each, every pair compared",
        goal="on a GPU at most 10 s and 8 GB (7629 MiB)",
        make=lambda device: objects(device, MORE_FRAMES),
        ways={"dal_dense": Way(matching_ours, cuda=True, cpu=False)},
        judge=matching_error,
    ),
)
