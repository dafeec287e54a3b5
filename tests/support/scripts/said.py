"""How the scripts here say what they know themselves, for a test to compare."""

import hashlib


def say(name, value):
    print(f"{name} {value!r}", flush=True)


def checksum(*models):
    digest = hashlib.sha256()
    for model in models:
        for name, tensor in model.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().numpy().tobytes())
    print(f"checksum {digest.hexdigest()!r}", flush=True)
