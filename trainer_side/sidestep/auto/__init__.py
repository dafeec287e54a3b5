"""Capture without a line of code: what `sidestep run` does to an unchanged script.

    on_path/sitecustomize.py   read by every Python below `sidestep run`; waits for torch
    capture.py                 knows the order: install when torch is there, begin at the first step, end
    patching.py                how a function of torch is wrapped, and what happens to a fault in here
    owners.py naming.py        whose parameters these are; what the run is called
    losses.py predictions.py loaders.py scaling.py clipping.py    one thing that is seen, a file
    report.py                  what is said at the start

Everything here looks at what passes by and hands it on unchanged. Nothing raises into the script, writes to its
tensors or draws a random number. Before the first optimizer step with gradients nothing is recorded, no collector
is looked for, and nothing is said: launchers, loader workers and scripts that only evaluate stay as they are.
"""
