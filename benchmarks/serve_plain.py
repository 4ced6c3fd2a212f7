"""What `benchmarks/serve.py` compares with: FastAPI and torch, without more. `python benchmarks/serve_plain.py PORT`"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

from manihot.train.networks.pretrained import make_backbone


def torch_network() -> Callable[[np.ndarray], np.ndarray]:
    """EfficientNet-Lite0 with the same weights in torch, and a linear head: uint8 (n, 224, 224, 3) to (n, 5)."""
    torch.set_num_threads(1)
    backbone = make_backbone("tf_efficientnet_lite0", "embedded", (224, 224)).eval()
    head = torch.nn.Linear(1280, 5)

    def network(photos: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            images = torch.from_numpy(photos).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
            return torch.softmax(head(backbone(images)), dim=1).numpy()

    return network


def decode(raw: bytes) -> np.ndarray:
    """As most servers do: Pillow, resized to 224 x 224."""
    with Image.open(io.BytesIO(raw)) as image:
        return np.asarray(image.convert("RGB").resize((224, 224)))


def main() -> None:
    """Serve at the port that is named."""
    import uvicorn
    from fastapi import Body, FastAPI

    app, network = FastAPI(), torch_network()

    @app.get("/health")
    def health() -> dict[str, bool]:
        return {"ready": True}

    @app.post("/v1/classify")
    def classify(photo: bytes = Body(media_type="application/octet-stream")) -> dict[str, list[float]]:
        return {"probabilities": network(decode(photo)[None])[0].tolist()}

    uvicorn.run(app, port=int(sys.argv[1]), log_level="warning")


if __name__ == "__main__":
    main()
