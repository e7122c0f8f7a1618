"""How a user asks for runs to be executed, before it is resolved for a machine."""

from dataclasses import dataclass

from resnet_bench.base.machine import default_threads
from resnet_bench.execution.choices import ExecutionMode, PrecisionChoice
from resnet_bench.execution.execution import DeviceType, Execution, compile_ahead, device_type_of, find_device


@dataclass(frozen=True)
class ExecutionOptions:
    """Device, mode and precision as typed; :meth:`resolve` turns them into an ``Execution`` where a run trains.

    Attributes:
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        mode: ``auto``, ``plain`` (stock PyTorch) or ``fast``.
        precision: ``auto``, ``fp32``, ``tf32`` or ``bf16``.
        threads: CPU threads of one run; all usable cores by default.
        compile: Run the model through ``torch.compile``.
        deterministic: The same seed must give the same bits on the same machine.
        autotune: Time candidate settings first and take the fastest. Studies never do.
    """

    device: str = "auto"
    mode: ExecutionMode = ExecutionMode.AUTO
    precision: PrecisionChoice = PrecisionChoice.AUTO
    threads: int | None = None
    compile: bool = False
    deterministic: bool = False
    autotune: bool = True

    def resolve(self) -> Execution:
        """Choose what is left open, for this machine.

        Raises:
            UserError: The device does not exist here, or cannot do what is asked.
        """
        return Execution.resolve(
            self.device,
            self.precision,
            compile=self.compile,
            deterministic=self.deterministic,
            threads=self.threads,
            mode=self.mode,
        )

    def compile_ahead(self) -> None:
        """Begin to compile the kernels that runs here will use, and return at once.

        Raises:
            UserError: The device does not exist here.
        """
        unused = self.mode == ExecutionMode.PLAIN or self.compile or self.deterministic
        if self.device_type == "cpu" and not unused:
            compile_ahead(self.precision)

    @property
    def device_type(self) -> DeviceType:
        """The kind of device, known without opening it.

        Raises:
            UserError: The device does not exist here.
        """
        return device_type_of(find_device(self.device))

    @property
    def total_threads(self) -> int:
        """CPU threads as typed; else all usable cores."""
        return self.threads or default_threads()
