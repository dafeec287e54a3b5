"""The collector: a daemon that receives, aggregates, stores and shows what training processes measured.

`pipeline.py` knows the order of the stages; read it first. No module here imports torch or the trainer side.
"""
