"""A description of machines that a recipe may run on, for `simulate`: typed, and all its faults in one message."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reeltag.core.errors import RecipeError
from reeltag.recipe.load import describe
from reeltag.recipe.tables import read_table


class Machines(BaseModel):
    """Equal nodes with equal GPUs. A GB is 10⁹ bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    nodes: int = Field(gt=0, le=10_000)
    gpus: int = Field(gt=0, le=1000, description="of a node")
    tflops: float = Field(gt=0, description="10¹² operations a second that a GPU sustains while it trains")
    link_gb_s: float = Field(gt=0, description="of a GPU to the others of its node, while they add up gradients")
    network_gb_s: float = Field(gt=0, description="of a node to the other nodes, the same")
    read_gb_s: float = Field(gt=0, description="of a node from where the videos are")
    write_gb_s: float = Field(gt=0, description="of a node to where checkpoints go")
    cpus: int = Field(gt=0, description="CPU cores of a node")
    load_gb_s: float = Field(gt=0, description="GB/s that one core reads, checks and turns into batches")
    price: float = Field(ge=0, description="of a node, an hour")

    @property
    def data_rate(self) -> float:
        """Bytes of videos a second that a node supplies to its GPUs: limited by reading, or by its cores."""
        return 1e9 * min(self.read_gb_s, self.cpus * self.load_gb_s)

    def shape(self, gpus: int) -> tuple[int, ...]:
        """GPUs of each node where so many are taken, whole nodes first."""
        whole, rest = divmod(gpus, self.gpus)
        return (self.gpus,) * whole + ((rest,) if rest else ())


def load_machines(path: Path) -> Machines:
    """Read a description.

    Args:
        path: a TOML file.

    Raises:
        RecipeError: lists every fault with its key.
    """
    table = read_table(path)
    if "processors" in table:
        raise RecipeError(str(path), ["processors is called cpus now"])
    try:
        return Machines.model_validate(table)
    except ValidationError as error:
        faults = [describe(fault, list(Machines.model_fields)) for fault in error.errors()]
        raise RecipeError(str(path), faults) from error
