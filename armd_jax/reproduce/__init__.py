"""The comparison of systems in miniature: pieces.py says what is run, run.py runs what is missing,
tables.py and pictures.py show it. `python -m armd_jax.reproduce` does all of it."""
