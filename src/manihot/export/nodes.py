"""Nodes of an ONNX graph being built, and what several parts of it are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto

FLOAT, BYTE, WHOLE, BOOL, DOUBLE = 1, 2, 7, 9, 11  # of onnx.TensorProto: float32, uint8, int64, bool, float64


class Graph:
    """Nodes and constants of a graph being built; every method returns the name of what it computes.

    prefix: of all names, so that a branch can have nodes of its own.
    """

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def constant(self, value: np.ndarray | Sequence[float] | float, kind: type = np.float32) -> str:
        """A constant of that type."""
        from onnx import numpy_helper

        name = f"{self.prefix}c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(value, dtype=kind, order="C"), name))
        return name

    def weights(self, value: np.ndarray, half: bool) -> str:
        """A constant float32, kept in 16 bits where `half`."""
        return self.add("Cast", self.constant(value, np.float16), to=FLOAT) if half else self.constant(value)

    def add(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """A node with one output."""
        from onnx import helper

        out = name or f"{self.prefix}n{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [out], name=out, **attributes))
        return out

    def top(self, values: str, count: int = 1) -> tuple[str, str]:
        """The largest of each row (N, count) in falling order, and their places, the first of equal ones first."""
        from onnx import helper

        names = f"{self.prefix}top{len(self.nodes)}", f"{self.prefix}place{len(self.nodes)}"
        inputs = [values, self.constant([count], np.int64)]
        self.nodes.append(helper.make_node("TopK", inputs, list(names), axis=1))
        return names
