"""The contract between the training process and the collector.

Both sides import this package and nothing of each other. It needs only the standard library, opens no
file and no socket, and holds no state: formats, names, tables and errors, declared once.
"""
