"""Ahead of time: whether the training step of each recipe compiles for an accelerator, fits and scales, without having one.

    python -m evals.aot [RECIPE ...] --topology v5e:16x16        with libtpu: pip install 'purezoo[tpu]'
    python -m evals.aot ... --platform cuda --target FILE        with jax-cuda12-plugin and jax-cuda12-pjrt

``program`` compiles, ``evals.hlo`` reads the collectives out of the result, ``operations`` counts, ``chips`` predicts times.
"""
