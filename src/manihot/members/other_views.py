"""A trained member's networks applied to other views of the photographs: what test-time augmentation alone changes.

The networks are those of another member, so nothing is trained. Leaves members/NAME/foldK/ with oof.parquet and
test.parquet but without a network of its own, and predictions/NAME.*.parquet like any member.
"""

from __future__ import annotations

from collections.abc import Sequence

from manihot.errors import DataError
from manihot.infer.models import network_of, open_network
from manihot.members.crossval import collect
from manihot.members.member import Member
from manihot.members.outputs import predict_fold
from manihot.records.files import digest_file
from manihot.records.run_folder import Files


def look_again(member: Member, of: str, folds: Sequence[int]) -> None:
    """Predict what each fold held out, and the test photographs, with the networks of member `of`, as `member` looks.

    A fold is a stage of the run that is done once. Raises DataError where `of` is not trained yet.
    """
    for fold in folds or [0]:
        _one_fold(member, of, fold)
    collect(member, list(folds))


def _one_fold(member: Member, of: str, fold: int) -> None:
    place = member.run.fold(of, fold).path
    network = network_of(place)
    if network is None:
        raise DataError(f"{member.name}: {of!r} has no network of fold {fold}", f"train {of} first: {place}")
    _, held = member.rows(fold)
    own = member.run.fold(member.name, fold)
    wanted = {own.oof: held, own.test: member.test_rows}
    outputs = [path for path, rows in wanted.items() if len(rows)]
    inputs = {
        "network": digest_file(network),
        "tta": [view.model_dump(mode="json") for view in member.recipe.tta],
        "fold": fold,
        "photographs": member.manifest.table[["image_id", "sha256", "label", "split", "fold"]].to_numpy().tolist(),
    }

    def work() -> Files:
        predict_fold(member, fold, held, open_network(network, member.tools.device, member.tools.opener))
        return outputs

    member.run.stage(member.run.relative(own.path), inputs, work)
