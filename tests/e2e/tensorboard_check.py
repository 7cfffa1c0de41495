"""Reads the event files of a run with TensorBoard's own loader and compares them with metrics.jsonl.
Usage: tensorboard_check.py RUN_FOLDER"""

import json
import math
import pathlib
import struct
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

run = pathlib.Path(sys.argv[1])
events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "histograms": 0, "tensors": 0})
events.Reload()
expected = {}
for line in (run / "metrics.jsonl").read_text().splitlines():
    fields = json.loads(line)
    step = fields.pop("step")
    for name, value in fields.items():
        expected.setdefault(name, []).append((step, value))
assert set(events.Tags()["scalars"]) == set(expected), set(events.Tags()["scalars"]) ^ set(expected)
for name, values in expected.items():
    read = [(e.step, e.value) for e in events.Scalars(name)]
    assert [s for s, _ in read] == [s for s, _ in values], (name, read, values)
    for (_, got), (_, wanted) in zip(read, values):
        assert math.isnan(got) if wanted is None else got == struct.unpack("f", struct.pack("f", wanted))[0], (name, got, wanted)

histograms = 0
for line in (run / "expert_loads.jsonl").read_text().splitlines():
    loads = json.loads(line)
    for layer, counts in loads.items():
        if layer == "step":
            continue
        (histogram,) = [e.histogram_value for e in events.Histograms(f"moe/{layer}/expert_load") if e.step == loads["step"]]
        assert histogram.num == sum(counts), (layer, histogram, counts)
        assert list(histogram.bucket) == counts, (layer, histogram, counts)
        histograms += 1
assert histograms > 0 and expected
print(f"{len(expected)} scalars and {histograms} histograms read back as they were written")
