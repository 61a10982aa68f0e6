"""skglm's median regression, in its own environment: `python skglm_median.py PROBLEM.npz LAMBDA`, prints JSON."""

import json
import sys
import time
from importlib.metadata import version

import numpy as np
from skglm.experimental.pdcd_ws import PDCD_WS
from skglm.experimental.quantile_regression import Pinball
from skglm.penalties import L1
from skglm.utils.jit_compilation import compiled_clone

problem = np.load(sys.argv[1])
X, y = np.asfortranarray(problem["X"]), problem["y"]
lmbda = float(sys.argv[2])
datafit, penalty = compiled_clone(Pinball(0.5)), compiled_clone(L1(lmbda))


def solved(design, target):
    solver = PDCD_WS(dual_init=np.sign(target) / 2, tol=1e-8, max_iter=1000, max_epochs=5000)
    started = time.process_time()
    coefficients = solver.solve(design, target, datafit, penalty)[0]
    return time.process_time() - started, coefficients


solved(np.asfortranarray(X[:20, :5]), y[:20])  # compiles
seconds, coefficients = solved(X, y)
objective = 0.5 * np.abs(y - X @ coefficients).sum() + lmbda * np.abs(coefficients).sum()
print(json.dumps({"seconds": seconds, "objective": float(objective), "version": version("skglm")}))
