"""Everything that one GPU has to show, measured by one command: see `docs/device.md`.

    python -m armd_jax.bench.device --out=FOLDER [--limit=575] [--stages=smoke,numerics,...]

`stages` lists what is measured, each stage as processes that `runner` starts, watches and ends;
every process writes its `rows` as it measures them; `goals` judges the rows, `page` and `picture`
show them. What the runner imports comes with Python, so that it works where packages are missing.
"""
