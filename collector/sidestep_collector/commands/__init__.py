"""Commands that look into a store: `ls`, `show`, `sql`. They read, and never write.

The command line of the trainer side finds them by entry point, so it starts without DuckDB.
"""
