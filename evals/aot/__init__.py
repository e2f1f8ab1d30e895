"""Ahead-of-time checks, without an accelerator: do training steps compile for it, fit and scale?

    python -m evals.aot [RECIPE ...] --topology v5e:16x16   needs libtpu: pip install 'purezoo[tpu]'
    python -m evals.aot ... --platform cuda --target FILE   needs jax-cuda12-plugin, jax-cuda12-pjrt

``program`` compiles, ``evals.hlo`` parses the collectives, ``operations`` counts operations,
``chips`` predicts times.
"""
