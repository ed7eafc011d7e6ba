"""Carries a policy over to features that did not exist when it was trained: their weights are zero.

    python tools/widen_policy.py old.onnx new.onnx

Its scores are the old ones, and training may go on from there (`--start-from new.onnx`). The view's columns
and the dial must be those that it was trained with, and its features the first of today's.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnx

from fairlead import FairleadError
from fairlead.view.features import FEATURES, SCHEMA_HASH
from fairlead.view.schema import schema_hash

FIRST_LAYER = "trunk.encoder.layers.0.weight"
"""What reads the features: (features, hidden) in the file."""


def widen(old: Path, new: Path) -> None:
    """Write the policy in `old` to `new`, with today's features.

    Raises:
        FairleadError: if its features are not the first of today's, or its view or dial is another.
    """
    model = onnx.load(old)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    features = tuple(json.loads(properties["features"]))
    if features != FEATURES[: len(features)] or properties["schema_hash"] != schema_hash(features):
        raise FairleadError(f"{old}: its features are not the first of today's, or its view is another")
    architecture = json.loads(properties["architecture"])
    if architecture["projection"] or "seen" in {constant.name for constant in model.graph.initializer}:
        raise FairleadError(f"{old}: a projection or excluded features cannot be widened")
    for constant in model.graph.initializer:
        if constant.name == FIRST_LAYER:
            weight = onnx.numpy_helper.to_array(constant)
            more = np.zeros((len(FEATURES) - len(features), weight.shape[1]), np.float32)
            constant.CopyFrom(onnx.numpy_helper.from_array(np.concatenate([weight, more]), constant.name))
    for value in model.graph.input:
        if value.name == "features":
            value.type.tensor_type.shape.dim[2].dim_value = len(FEATURES)
    properties |= {
        "schema_hash": SCHEMA_HASH,
        "features": json.dumps(FEATURES),
        "architecture": json.dumps({**architecture, "features": len(FEATURES)}, sort_keys=True),
    }
    onnx.helper.set_model_props(model, properties)
    onnx.checker.check_model(model, full_check=True)
    new.write_bytes(model.SerializeToString())


if __name__ == "__main__":
    try:
        widen(Path(sys.argv[1]), Path(sys.argv[2]))
    except FairleadError as error:
        sys.exit(f"error: {error}")
