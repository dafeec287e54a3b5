"""What watching costs a training: the parts of `bench_overhead.py`, one question a file.

`trainings` has the networks, `turns` compares two of them that train in turn, `ratios`, `peers`, `tensors` and
`memory` ask the questions.
"""
