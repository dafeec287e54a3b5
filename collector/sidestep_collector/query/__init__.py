"""Questions that are asked over runs, of what is stored: numpy in, plain results out.

`curves` and its neighbours know nothing of a store; `slope` reads one. No stage of the pipeline is here.
"""
