"""What a function mode of one forward pass must do where the pass is interrupted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch._C import (
    _len_torch_function_stack,
    _pop_torch_function_stack,
    _push_on_torch_function_stack,
)
from torch.overrides import TorchFunctionMode

__all__ = ["PassMode"]


class PassMode(TorchFunctionMode):
    """A function mode of one forward pass.

    Hooks end a pass that raises an exception; Ctrl-C they do not see, so that the mode stays among
    those of the thread until whoever reads the pass takes it off, from between others. Until then it
    does nothing, if it was an operation that was interrupted.
    """

    _over = False
    _depth: int | None = None  # where among the thread's modes it belongs, while it is not there

    def wait(self) -> None:
        """Enter the context, but leave the operations alone until `join`."""
        self._depth = _len_torch_function_stack()

    def join(self) -> None:
        """Take the place that it would have had it not waited."""
        if self._depth is None:
            return
        above = [
            _pop_torch_function_stack() for _ in range(_len_torch_function_stack() - self._depth)
        ]
        self._depth = None
        for mode in (self, *reversed(above)):
            _push_on_torch_function_stack(mode)

    def run(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Run an operation of the pass."""
        raise NotImplementedError

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if self._over:
            return func(*args, **(kwargs or {}))
        try:
            return self.run(func, args, kwargs or {})
        except Exception:
            raise
        except BaseException:  # KeyboardInterrupt
            self._over = True
            raise

    def __exit__(self, *exc_info: Any) -> None:
        if self._depth is not None:
            return
        above = []
        while _len_torch_function_stack():
            mode = _pop_torch_function_stack()
            if mode is self:
                break
            above.append(mode)
        for mode in reversed(above):
            _push_on_torch_function_stack(mode)
