"""People in a laboratory: shared folders, images that vanish while they draw, labels that come back late."""

from pathlib import Path

import pytest

from dal_dense.ledger import Ledger
from tests.e2e.command import TrainAl, batch, draw, labels
from tests.world import settings, write_volumes


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_volumes(tmp_path / "data")


def test_two_runs_may_not_share_a_folder_of_returns(train_al: TrainAl, data: Path, tmp_path: Path) -> None:
    people = {"annotator__name": "people", "annotator__returns": str(tmp_path / "inbox")}
    assert train_al(settings(data, tmp_path / "one", **people)).status == 0
    ended = train_al(settings(data, tmp_path / "two", **people, seed="5"))
    assert ended.status == 1 and ended.err.count("\n") == 1
    assert f"{tmp_path / 'inbox'}: takes the labels of run" in ended.err
    assert "give each run its own annotator.returns" in ended.err
    assert train_al(settings(data, tmp_path / "one", **people)).status == 0


def test_a_round_does_not_wait_for_an_image_that_went_bad_while_people_drew(
    train_al: TrainAl, data: Path, tmp_path: Path
) -> None:
    argv, run_dir = settings(data, tmp_path / "run", annotator__name="people"), tmp_path / "run"
    assert train_al(argv).status == 0
    with Ledger.read(run_dir) as ledger:
        asked = ledger.open_regions()
    image = asked[0].image_id
    path = data / "imagesTr" / f"{image}.nii.gz"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    lost = [r.id for r in asked if r.image_id == image]
    done = draw(data, batch(run_dir, 0), [i for i, r in enumerate(asked) if r.image_id != image])
    ended = train_al(argv)
    assert ended.status == 0 and f"so nobody waits for {', '.join(lost)} any more" in ended.out
    assert list(labels(run_dir)) == done
    with Ledger.read(run_dir) as ledger:
        assert [j.region.id for j in ledger.rejected()] == lost and ledger.measurement(0) is not None
        assert {r.image_id for r in ledger.open_regions()}.isdisjoint({image})


def test_times_of_the_last_round_are_charged_after_the_run_is_done(
    train_al: TrainAl, data: Path, tmp_path: Path
) -> None:
    argv, run_dir = settings(data, tmp_path / "run", annotator__name="people", budget__rounds="1"), tmp_path / "run"
    for number in range(2):
        assert train_al(argv).status == 0
        done = draw(data, batch(run_dir, number))
    assert "all rounds are done" in train_al(argv).out
    times = "".join(f"{name};100\n" for name in done)
    (batch(run_dir, 1) / "returned" / "times.csv").write_text(f"region_id;seconds\n{times}")
    assert "replace what the cost model charged" in train_al(argv).out
    assert "warning" not in train_al(argv).out
    with Ledger.read(run_dir) as ledger:
        assert {e.charged_seconds for e in ledger.cost_log() if e.round == 1} == {100}
        assert ledger.spent_by_round()[1] == 100 * len(done)
