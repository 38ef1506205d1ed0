"""Penjing shrinks an image-recognition network until it fits a device, and shows what that cost."""

from __future__ import annotations

__version__ = "0.1.0"

from penjing.api import Request, compress, plan
from penjing.data import Data, open_data
from penjing.device import Device
from penjing.errors import InputError, PenjingError, PlanError, PluginError, StepError
from penjing.goal import Goal
from penjing.hookspecs import hookimpl
from penjing.host import Host
from penjing.model import Model, Tensor
from penjing.options import option
from penjing.plan import Plan
from penjing.preprocess import Preprocess
from penjing.recipe import Recipe, Use
from penjing.reload import load
from penjing.step import Backend, Context, Progress, Scheme, Session, Source, Step, Technique
from penjing.task import Task

__all__ = [
    "Backend",
    "Context",
    "Data",
    "Device",
    "Goal",
    "Host",
    "InputError",
    "Model",
    "PenjingError",
    "Plan",
    "PlanError",
    "PluginError",
    "Preprocess",
    "Progress",
    "Recipe",
    "Request",
    "Scheme",
    "Session",
    "Source",
    "Step",
    "StepError",
    "Task",
    "Technique",
    "Tensor",
    "Use",
    "__version__",
    "compress",
    "hookimpl",
    "load",
    "open_data",
    "option",
    "plan",
]
