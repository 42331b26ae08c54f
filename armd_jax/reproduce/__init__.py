"""The comparison of systems in miniature.

pieces.py lists what is run, place.py what decides a result, run.py runs what is missing, work.py
does it; claims.py, tables.py and pictures.py show it.
"""
