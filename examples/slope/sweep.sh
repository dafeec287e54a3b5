#!/bin/sh
# 216 short runs, 6 learning rates x 4 widths x 9 seeds, attached to one collector. Again the same call goes on where
# one was cut short. Arguments go to `sidestep sweep`: examples/slope/sweep.sh --jobs 8 --dir /tmp/slopes
exec sidestep sweep --name slopes --project slope --jobs 2 \
    --grid lr=0.01,0.02,0.05,0.1,0.2,0.5 --grid width=8,16,32,64 --grid seed=0..8 "$@" \
    -- python "$(dirname "$0")/train.py" --samples 4096 --batch-size 128 --curvature-every 48 --curvature-budget 1
