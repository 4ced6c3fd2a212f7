"""What `benchmarks/serve.py` compares with: LitServe and torch. `python benchmarks/serve_litserve.py PORT`"""

from __future__ import annotations

import base64
import sys

import litserve
import numpy as np

from serve_plain import decode, torch_network


class Api(litserve.LitAPI):
    """Photographs in base64, in batches as large as ours."""

    def setup(self, device: str) -> None:
        """Make the network."""
        self.network = torch_network()

    def decode_request(self, request: dict[str, str]) -> np.ndarray:
        """A photograph's pixels."""
        return decode(base64.b64decode(request["photo"]))

    def predict(self, photos: list[np.ndarray]) -> np.ndarray:
        """A batch."""
        return self.network(np.stack(photos))

    def encode_response(self, row: np.ndarray) -> dict[str, list[float]]:
        """One answer."""
        return {"probabilities": row.tolist()}


if __name__ == "__main__":
    api = Api(max_batch_size=4, batch_timeout=0.005)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(port=int(sys.argv[1]), generate_client_file=False)
