"""pyprimal's paths, in its own environment: `python pyprimal_paths.py PROBLEM.npz LAST_LAMBDA`, prints JSON."""

import json
import sys
import time

import numpy as np
import pyprimal

problem = np.load(sys.argv[1])
last = float(sys.argv[2])
seconds = []
for _ in range(int(sys.argv[3])):
    started = time.process_time()
    result = pyprimal.dantzig_solver(problem["X"], problem["y"], max_it=100_000, lambda_threshold=last)
    seconds.append(time.process_time() - started)
values = np.asarray(result.value)
print(
    json.dumps(
        {
            "seconds": seconds,
            "breakpoints": len(values),
            "last_lambda": float(np.asarray(result.lambda_)[-1]),
            "last_value": float(values[-1]),
            "version": pyprimal.__version__,
        }
    )
)
