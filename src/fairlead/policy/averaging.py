"""One policy whose weights are the mean of several that were trained from the same one.

What each has learnt a little too much of is taken back, and a decision takes no longer (Wortsman et al.,
Model soups, ICML 2022). Policies that were not trained from the same one have nothing to do with each other,
weight by weight: their mean is of no use.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fairlead.errors import FairleadError


def average(policies: Sequence[Path], out: Path) -> None:
    """Write the mean of exported `policies` to `out`; the rest of the file is that of the last one.

    Needs `onnx` (the `train` extra).

    Raises:
        FairleadError: for fewer than two, or for networks of different sizes or schemas.
    """
    import onnx

    if len(policies) < 2:
        raise FairleadError("a mean takes at least two policies: name more")
    models = [onnx.load(path) for path in policies]
    properties = [{entry.key: entry.value for entry in model.metadata_props} for model in models]
    weights = [{each.name: each for each in model.graph.initializer} for model in models]
    # Names and shapes of all weights, beside what the file says, are the network.
    sizes = [{name: tuple(each.dims) for name, each in of.items()} for of in weights]
    for path, other, size in zip(policies, properties, sizes, strict=True):
        if other["schema_hash"] != properties[-1]["schema_hash"]:
            raise FairleadError(f"{path} and {policies[-1]} differ in their schema: they have no mean")
        if size != sizes[-1] or other["architecture"] != properties[-1]["architecture"]:
            raise FairleadError(f"{path} and {policies[-1]} differ in their network: they have no mean")
    for constant in models[-1].graph.initializer:
        values = [onnx.numpy_helper.to_array(each[constant.name]) for each in weights]
        if constant.data_type == onnx.TensorProto.FLOAT:
            mean = np.asarray(np.mean(values, axis=0, dtype=np.float64), np.float32)
            constant.CopyFrom(onnx.numpy_helper.from_array(mean, constant.name))
    training = json.loads(properties[-1]["training"]) | {"mean_of": [str(path) for path in policies]}
    onnx.helper.set_model_props(
        models[-1], properties[-1] | {"training": json.dumps(training, sort_keys=True)}
    )
    onnx.checker.check_model(models[-1], full_check=True)
    out.write_bytes(models[-1].SerializeToString())
