"""What the pack adds to ComfyUI."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .caches.nodes import CacheLatents, CacheText
from .dataset.from_images import ImagesDataset
from .dataset.report import DatasetReport
from .dataset.sources import (
    CombineDatasets,
    FileDataset,
    ImageFolderDataset,
    JsonlDataset,
    VideoFolderDataset,
)
from .folders import register_folders
from .inference.fp8_nodes import LoadFp8Model
from .inference.magcache_nodes import CalibrateMagCache, LoadMagCacheRatios, MagCache
from .models.training_model import TrainingModelNode
from .tools.average import AverageLoras
from .tools.convert import ConvertLora
from .tools.fp8_file import SaveFp8Model
from .tools.inspect import InspectFile
from .tools.lora_lists import LoraList, RunCheckpoints
from .tools.merge import MergeIntoModel, MergeLoras
from .tools.ranks import ExtractLora, ResizeLora
from .training.groups import Memory, Network, Optimizer, Saving
from .training.quick_start import QuickStart
from .training.samples import SamplePrompts
from .training.timesteps import Timesteps
from .training.train import PlanTraining, TrainLora

NODES: tuple[type[io.ComfyNode], ...] = (
    ImageFolderDataset,
    VideoFolderDataset,
    JsonlDataset,
    FileDataset,
    ImagesDataset,
    CombineDatasets,
    DatasetReport,
    TrainingModelNode,
    CacheLatents,
    CacheText,
    Network,
    Optimizer,
    Timesteps,
    Memory,
    SamplePrompts,
    Saving,
    PlanTraining,
    TrainLora,
    QuickStart,
    LoadFp8Model,
    MagCache,
    CalibrateMagCache,
    LoadMagCacheRatios,
    LoraList,
    RunCheckpoints,
    AverageLoras,
    ConvertLora,
    MergeLoras,
    MergeIntoModel,
    ExtractLora,
    ResizeLora,
    InspectFile,
    SaveFp8Model,
)


class MusubiExtension(ComfyExtension):
    """All nodes, group by group."""

    def __init__(self) -> None:
        register_folders()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return list(NODES)
