"""Classify photographs with the model beside this file: python example.py photo.jpg ...

Needs: pip install onnxruntime numpy pillow
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

home = Path(__file__).resolve().parent
about = json.loads((home / "model.json").read_text(encoding="utf-8"))
session = onnxruntime.InferenceSession(str(home / "model.onnx"), providers=["CPUExecutionProvider"])
wanted = ["probabilities", *(name for name in ("held", "strangeness") if name in about["outputs"])]

for file in sys.argv[1:]:
    photo = ImageOps.exif_transpose(Image.open(file)).convert("RGB")  # upright; the graph resizes it
    found = dict(zip(wanted, session.run(wanted, {"photos": np.asarray(photo)[None]})))
    for name, p in sorted(zip(about["classes"], found["probabilities"][0]), key=lambda pair: -pair[1]):
        print(f"{file}\t{name}\t{p:.4f}")
    if "held" in found:
        could_be = [name for name, held in zip(about["classes"], found["held"][0]) if held]
        print(f"{file}\tcould be: {', '.join(could_be) or 'nothing that the model knows'}")
    if found.get("strangeness", [0])[0] > 1:
        print(f"{file}\tnot a photograph of this kind")
