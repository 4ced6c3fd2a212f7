"""The columns of a manifest; without pandas, for programs that only look through photographs."""

from __future__ import annotations

UNLABELLED = -1
ALWAYS_TRAIN = -1  # fold of a photograph that is never held out

# column -> (dtype, value where the source says nothing)
COLUMNS: dict[str, tuple[str, object]] = {
    "image_id": ("object", ""),  # unique; the file name unless the user gave ids
    "path": ("object", ""),  # relative to Manifest.root with '/', or absolute
    "label": ("int64", UNLABELLED),  # index into Manifest.classes
    "source": ("object", "main"),  # where the photograph comes from: a year, a district, a phone
    "group": ("object", ""),  # photographs of one plant or one duplicate group; '' = alone
    "split": ("object", "train"),  # 'train', 'val' (held out by the user) or 'test' (only predicted)
    "fold": ("int64", ALWAYS_TRAIN),  # the fold that holds the photograph out
    "weight": ("float32", 1.0),  # weight in training
    "sha256": ("object", ""),
    "height": ("int64", 0),  # pixels, after EXIF orientation
    "width": ("int64", 0),
    "bytes": ("int64", 0),
}
