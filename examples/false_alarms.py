"""The fewest missed tumours while the loss on healthy tissue stays within a bound (Neyman-Pearson).

python examples/false_alarms.py [LEVEL]
"""

import sys

import torch
from sklearn.datasets import load_breast_cancer

from burnish.optim.constrained import ConstrainedResult, NeymanPearson, constrained_minimize


def main(level: float = 0.1) -> ConstrainedResult:
    cells, benign = load_breast_cancer(return_X_y=True)
    features = torch.tensor((cells - cells.mean(0)) / cells.std(0))
    features = torch.cat([features, torch.ones(len(features), 1, dtype=torch.float64)], dim=1)
    malignant = torch.tensor(benign == 0)
    weights = torch.zeros(features.shape[1], dtype=torch.float64, requires_grad=True)
    problem = NeymanPearson(level).problem(lambda rows: rows @ weights, features, malignant, batch_size=2)
    ball = {"proximal": "ball", "radius": 2.0}
    result = constrained_minimize(problem.objective, problem.constraints, [weights], proximal=ball, restart=150)
    last, alarms = result.rows[-1], (features @ weights > 0).detach()
    print(f"{result.status}: loss of tumours {last['objective']:.4f}, bound on healthy tissue broken by", end=" ")
    print(f"{last['violation']:.0e}, multiplier {float(result.multipliers):.3f}, {last['samples']:,} samples evaluated")
    print(f"{int(alarms[~malignant].sum())} false alarms of {int((~malignant).sum())},", end=" ")
    print(f"{int((~alarms[malignant]).sum())} missed of {int(malignant.sum())}")
    return result


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
