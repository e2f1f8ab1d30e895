"""Builds digits.npz from scikit-learn's copy of the UCI handwritten digits (CC BY 4.0).

Run it with ``python train/assets/make_digits.py``.

Alpaydin, Kaynak (1998), Optical Recognition of Handwritten Digits,
https://doi.org/10.24432/C50P49.  This is the set's test part: 1,797 images 8x8, values 0..16, of
13 writers.  The copy does not say who wrote what, so the shuffled, stratified split has the same
writers on both sides.
"""

import pathlib

import numpy as np
from sklearn.datasets import load_digits

from train.dataset import stratified_split

SIZES = (1397, 100, 300)


def main() -> None:
    """Writes digits.npz beside this file."""
    images, targets = load_digits(return_X_y=True)
    order = np.concatenate(stratified_split(targets, SIZES))
    np.savez_compressed(
        pathlib.Path(__file__).parent / "digits.npz",
        inputs=images[order].reshape(-1, 8, 8).astype(np.uint8),
        targets=targets[order].astype(np.uint8),
        sizes=np.asarray(SIZES, np.int32),
    )


if __name__ == "__main__":
    main()
