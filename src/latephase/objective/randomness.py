"""Random numbers that every pass over a chunk draws alike, without disturbing torch's generators."""

import contextlib
import hashlib
import random
import sys
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from .exclusive import exclusive


def cuda_devices(model: nn.Module) -> list[int]:
    """Indices of the CUDA devices that hold the model's parameters."""
    return sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})


@contextlib.contextmanager
def forked(seed: int, devices: list[int]) -> Iterator[None]:
    """Within, the generators of the CPU and of the CUDA devices start from a seed; afterwards they are as before.

    They are the process's, so that other threads wait to do the same.
    """
    with exclusive(), torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        for device in devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def generator_states(devices: list[int]) -> list[Tensor]:
    """States of the generators, to see whether a pass has drawn from them."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]


def set_generator_states(states: Sequence[Tensor], devices: Sequence[int]) -> None:
    """Set what `generator_states` returned for the same devices."""
    torch.set_rng_state(states[0])
    for device, state in zip(devices, states[1:], strict=True):
        torch.cuda.set_rng_state(state, device)


def other_generators(model: nn.Module) -> Callable[[], None]:
    """Keep the generators that a model may draw from beside torch's; returns what puts them back.

    Those of Python and NumPy, and torch generators that hang at its modules. Passes draw from them as they come.
    """
    python, numpy = random.getstate(), sys.modules.get("numpy.random")
    of_numpy = None if numpy is None else numpy.get_state()
    held = [x for module in model.modules() for x in vars(module).values() if isinstance(x, torch.Generator)]
    states = [generator.get_state() for generator in held]

    def put_back() -> None:
        random.setstate(python)
        if numpy is not None:
            numpy.set_state(of_numpy)
        for generator, state in zip(held, states, strict=True):
            generator.set_state(state)

    return put_back


def seed_of_chunk(seed: int, index: int, rank: int) -> int:
    """The seed of one chunk on one rank: each draws numbers of its own."""
    return (seed + index + 1_000_003 * rank) % 2**63


def seed_of_stream(seed: int, stream: str, rank: int) -> int:
    """A seed unlike those that are drawn with elsewhere: what a user draws by the same seed is not drawn again."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {stream} {rank}".encode(), digest_size=7).digest())


def peek_seed() -> int:
    """What torch's CPU generator would draw next, without taking it."""
    with exclusive(), torch.random.fork_rng(devices=[]):
        return draw_seed()


def random_signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """Entries 1 and -1 with equal probability, in the shape and dtype of a tensor."""
    bits = torch.randint(2, like.shape, device=like.device, generator=generator, dtype=torch.int8)
    return bits.to(like.dtype).mul_(2).sub_(1)


def draw_seed() -> int:
    """A seed from torch's CPU generator."""
    with exclusive():
        return int(torch.randint(2**62, ()))


def shared_seed(share: Callable[[Tensor], Tensor], device: torch.device) -> int:
    """A seed from torch's CPU generator, the first rank's on every rank.

    Args:
        share: of the ranks (`reduce.Reduce`).
        device: where tensors can be shared.
    """
    return int(share(torch.tensor(draw_seed(), dtype=torch.int64, device=device)))
