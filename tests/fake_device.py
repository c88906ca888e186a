"""A device "fake" in a process without accelerators: tensors claim it, and refuse to meet others.

Every operation on its tensors is checked as a real device checks it: all tensors of an operation lie on one device,
save CPU scalars of no dimensions, which a kernel may take. Values are held and computed on the CPU, so that a step on
the fake device must equal the step on the CPU. It is what torch calls a Python backend (`PrivateUse1`), whose
registration changes the process for good: `test_fake_device.py` starts one for its cases.
"""

from typing import Any

import torch
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "fake"

MIXED = (
    *("aten::copy_", "aten::_to_copy", "aten::_copy_from", "aten::_local_scalar_dense"),
    *("aten::index", "aten::index_put", "aten::index_put_", "aten::_unsafe_index"),
)
"""Operations that go from one device to another, and those whose indices real devices take from the CPU."""


class OnDevice(torch.Tensor):
    """A tensor that says it lies on the fake device."""

    elem: torch.Tensor

    @staticmethod
    def __new__(cls, elem: torch.Tensor, requires_grad: bool = False):
        """Wrap a CPU tensor, with its sizes and strides."""
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            elem.size(),
            strides=elem.stride(),
            storage_offset=elem.storage_offset(),
            dtype=elem.dtype,
            layout=elem.layout,
            device=torch.device(NAME, 0),
            requires_grad=requires_grad,
        )
        made.elem = elem
        return made

    def __repr__(self, **_: Any) -> str:
        return f"OnDevice({self.elem!r})"

    def data_ptr(self) -> int:
        return self.elem.data_ptr()

    def tolist(self) -> Any:
        return self.elem.tolist()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.elem.untyped_storage()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


class WrongDevice(RuntimeError):
    """An operation on tensors of two devices."""


def is_fake(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def bare(value: Any) -> Any:
    """What the CPU computes with."""
    return value.elem if isinstance(value, OnDevice) else value


def check_devices(func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether an operation has tensors on the fake device; an error where it has others, too."""
    tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, torch.Tensor)]
    on_fake = any(isinstance(tensor, OnDevice) for tensor in tensors)
    if on_fake and func._schema.name not in MIXED:
        for tensor in tensors:
            if not isinstance(tensor, OnDevice) and (tensor.dim() or func._schema.is_mutable):
                name, where = func._schema.name, tensor.device
                raise WrongDevice(f"{name}: tensors on {NAME} and on {where}, of shape {list(tensor.shape)}")
    return on_fake


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operation: devices are checked, the CPU computes, what comes out lies where it belongs."""
    if func._schema.name == "aten::copy_":
        bare(args[0]).copy_(bare(args[1]))
        return args[0]
    on_fake = check_devices(func, args, kwargs)
    given = kwargs.get("device")
    stays = given is None or is_fake(given)  # without tensors on it, only what makes some comes here
    cpu_args, cpu_kwargs = tree_map_only(OnDevice, bare, (args, kwargs))
    if is_fake(given):
        cpu_kwargs["device"] = torch.device("cpu")
    cpu_kwargs.pop("pin_memory", None)
    out = func(*cpu_args, **cpu_kwargs)
    if not stays:
        return out
    out = tree_map_only(torch.Tensor, lambda t: t if isinstance(t, OnDevice) else OnDevice(t), out)
    return return_and_correct_aliasing(func, args, kwargs, out) if on_fake else out


class _Checked(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _GENERATOR)


_GENERATOR = torch.Generator


class Generator(metaclass=_Checked):
    """In place of torch.Generator: one for the fake device is one of the CPU, which computes for it."""

    def __new__(cls, device: Any = "cpu") -> Any:
        """Make the CPU's."""
        return _GENERATOR("cpu" if is_fake(device) else device)


def eye(rows: int, columns: int | None = None, **options: Any) -> OnDevice:
    """The identity; torch would make it of an empty tensor whose size it changes, which a wrapper cannot follow."""
    options["device"] = "cpu"
    return OnDevice(torch.eye(rows, rows if columns is None else columns, **options))


def register() -> torch.device:
    """Make the device known to torch; once in a process."""
    _setup_privateuseone_for_python_backend(NAME)
    getattr(torch, NAME).get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
    library = torch.library.Library("_", "IMPL")
    library.fallback(lambda func, *args, **kwargs: run(func, args, kwargs), "PrivateUse1")
    factories = torch.library.Library("aten", "IMPL")
    factories.impl("eye", eye, "PrivateUse1")
    factories.impl("eye.m", eye, "PrivateUse1")
    torch.Generator = Generator  # type: ignore[misc, assignment]
    register.library = library, factories  # type: ignore[attr-defined]  # lives as long as the process
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(list, device=...) makes it on the CPU and moves it
    return torch.device(NAME, 0)
