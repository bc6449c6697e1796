"""What a peer's run of the article's experiment tells: a line of JSON with the same keys for each."""

import json
import resource
import time


def tell(
    seed: int, examples: int, epochs: int, accuracy: float, loss: float, clock: tuple[float, float, float]
) -> None:
    """Print the line; ``clock`` has the monotonic times of the start, of everything loaded, and of the last step."""
    start, loaded, fitted = clock
    end = time.monotonic()
    seconds = {"data": loaded - start, "train": fitted - loaded, "eval": end - fitted, "total": end - start}
    result = {"seed": seed, "examples": examples, "epochs": epochs, "accuracy": accuracy, "loss": loss}
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({**result, "seconds": seconds, "peak_memory_bytes": memory}))
