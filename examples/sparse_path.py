"""The whole path of a sparse regression, with a picture and certificates.

python examples/sparse_path.py [PICTURE.png]
"""

import sys

import numpy as np
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.preprocessing import StandardScaler

from burnish.linear_model import CLIME, CompressedSensing, DantzigSelector, L1QuantileRegressor, SparseSVC


def main(picture: str | None = None) -> dict[str, float]:
    frame, y = load_diabetes(return_X_y=True, as_frame=True)
    X = StandardScaler().set_output(transform="pandas").fit_transform(frame)
    models = {
        "dantzig": DantzigSelector(fit_intercept=True).fit(X, y),
        "compressed sensing": CompressedSensing(fit_intercept=True).fit(X, y),
        "90 % quantile": L1QuantileRegressor(tau=0.9, fit_intercept=True).fit(X, y),
    }
    cells, labels = load_breast_cancer(return_X_y=True)
    models["support vectors"] = SparseSVC(cv=3, max_nonzeros=20).fit(StandardScaler().fit_transform(cells), labels)
    for name, model in models.items():
        path = model.path_
        print(
            f"{name}: {len(path.lambdas)} breakpoints, {np.count_nonzero(model.coef_)} of {path.coefs.shape[1]} "
            f"coefficients at lambda {model.lambda_:.4g}, largest duality gap {path.gaps.max():.0e}"
        )
    partial = CLIME(0.15).fit(X)
    print(f"CLIME: {np.count_nonzero(np.triu(partial.precision_, 1))} of 45 pairs depend on each other directly")
    if picture:
        models["dantzig"].plot_path().figure.savefig(picture, dpi=150)
    return {name: float(model.path_.gaps.max()) for name, model in models.items()}


if __name__ == "__main__":
    main(*sys.argv[1:])
