"""A trained member's networks looking at the photographs in other views: what test-time augmentation alone changes.

The networks are those of another member, so nothing is trained. Leaves members/NAME/foldK/ with oof.parquet and
test.parquet but without a network of its own, and predictions/NAME.*.parquet like any member.
"""

from __future__ import annotations

from collections.abc import Sequence

from manihot.errors import DataError
from manihot.infer.runners import TorchRunner
from manihot.members.crossval import collect
from manihot.members.member import Member
from manihot.records.files import digest_file
from manihot.train.finetune import NETWORK, predict_fold
from manihot.train.networks.checkpoint import load_network


def look_again(member: Member, of: str, folds: Sequence[int]) -> None:
    """Predict what each fold held out, and the test photographs, with the networks of member `of`, as `member` looks.

    A fold is a stage of the run that is done once. Raises DataError where `of` is not trained yet.
    """
    for fold in folds or [0]:
        _one_fold(member, of, fold)
    collect(member, list(folds))


def _one_fold(member: Member, of: str, fold: int) -> None:
    network = member.run / f"members/{of}/fold{fold}" / NETWORK
    if not network.is_file():
        raise DataError(f"{member.name}: {of!r} has no network of fold {fold}", f"train {of} first: {network}")
    _, held = member.rows(fold)
    folder = f"members/{member.name}/fold{fold}"
    wanted = {"oof": held, "test": member.test_rows}
    outputs = [f"{folder}/{name}.parquet" for name, rows in wanted.items() if len(rows)]
    inputs = {
        "network": digest_file(network),
        "tta": [view.model_dump(mode="json") for view in member.recipe.tta],
        "fold": fold,
        "photographs": member.manifest.table[["image_id", "sha256", "label", "split", "fold"]].to_numpy().tolist(),
    }

    def work() -> None:
        trained = load_network(network)
        precision = str(trained.about["precision"])
        predict_fold(member, fold, held, TorchRunner(trained.networks[0], member.preprocess, member.device, precision))

    member.run.stage(folder, inputs, outputs, work)
