"""Settings of a training run: the groups `model`, `data`, `trainer`, `optim`, `log`, `resume`.

The names are those of the NeMo guides (`trainer.max_steps`, `optim.config.lr`, `data.path`,
`resume.restore_config.path`, `model.jit_ckpt_pth`, …), so a command from a guide means here what it
means there. Everything is frozen and typed; `components.lib.train.settings.overrides` applies
dotted overrides and names the nearest valid field when one is misspelt.

Importing this module needs nothing but pydantic, so `--help` and config checks are instant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from components.lib.contract import Frozen, UserError
from components.lib.cosmos.tokenizer.config import TOKENIZER_PRESETS

#: Of what need not be on the GPU all the time.
Placement = Literal["auto", "gpu", "host"]


class LoraConfig(Frozen):
    """Low-rank adaptation of the DiT."""

    rank: int = Field(
        default=0, ge=0, description="Rank of the update; 0 trains all weights instead."
    )
    alpha: float = Field(
        default=0.0, ge=0, description="Scale is alpha / rank; 0 means alpha = rank."
    )
    targets: tuple[str, ...] = Field(
        default=("to_q", "to_k", "to_v", "to_out", "layer1", "layer2"),
        description="Which linear layers of a block get an update, by the name of the layer.",
    )


class DiffusionModel(Frozen):
    """Group `model` of the diffusion recipes."""

    preset: str = Field(default="tiny", description="Network: 7B, 14B, 7B-V2W, 14B-V2W or tiny.")
    p_mean: float = Field(default=0.0, description="Mean of ln(sigma) in training draws.")
    p_std: float = Field(default=1.0, gt=0, description="Standard deviation of ln(sigma) in draws.")
    sigma_data: float = Field(default=0.5, gt=0, description="Latents are multiplied by this.")
    text_dropout: float = Field(
        default=0.2, ge=0, le=1, description="Probability that a sample's text embedding is zeroed."
    )
    max_condition_frames: int = Field(
        default=4,
        ge=1,
        description="Video2World: 1 to this many latent frames are shown to the model.",
    )
    lora: LoraConfig = Field(default=LoraConfig(), description="Low-rank adaptation.")


class TokenizerModel(Frozen):
    """Group `model` of the tokenizer recipes."""

    model: str = Field(
        default="Cosmos-1.0-Tokenizer-CV8x8x8",
        description="Which tokenizer: Cosmos-1.0-Tokenizer-CV8x8x8, "
        "Cosmos-1.0-Tokenizer-DV8x16x16, tiny-cv or tiny-dv.",
    )
    jit_ckpt_pth: str = Field(
        default="",
        description="Weights to start from: a checkpoint manifest or a local model folder. "
        "Same meaning as resume.restore_config.path; empty starts from random weights.",
    )
    color_weight: float = Field(default=1.0, ge=0, description="Weight of the L1 term.")
    perceptual_weight: tuple[float, float] = Field(
        default=(0.1, 0.073),
        description="Weight of the VGG16 term before and after perceptual_boundary.",
    )
    perceptual_boundary: int = Field(
        default=500_000, ge=0, description="Global step of that change."
    )
    gram_weight: tuple[float, float] = Field(
        default=(0.0, 0.062),
        description="Weight of the Gram-matrix term before and after gram_boundary.",
    )
    gram_boundary: int = Field(default=500_000, ge=0, description="Global step of that change.")
    flow_weight: tuple[float, float] = Field(
        default=(0.0, 0.01),
        description="Weight of the optical-flow term before and after flow_boundary.",
    )
    flow_boundary: int = Field(default=250_000, ge=0, description="Global step of that change.")
    vgg_path: str = Field(
        default="",
        description="VGG16 weights: a checkpoint manifest or a folder. Needed when a perceptual or "
        "Gram weight is above zero.",
    )
    flow_path: str = Field(
        default="",
        description="TorchScript archive of an optical-flow network such as RAFT: (frames, next "
        "frames), each [N, 3, H, W] in [-1, 1], to [N, 2, H, W] in pixels. A file or an s3:// URI; "
        "needed when the flow weight is above zero.",
    )


class DataBase(Frozen):
    """What both data groups share."""

    path: str = Field(
        default="",
        description="The data set: its manifest (s3://…/manifest.json), or a local folder.",
    )
    micro_batch_size: int = Field(
        default=1, ge=1, description="Samples of one forward pass on one rank."
    )
    global_batch_size: int = Field(
        default=0,
        ge=0,
        description="Samples of one optimizer step over all ranks; 0 means micro_batch_size x data-"
        "parallel ranks x trainer.accumulate_grad_batches.",
    )
    shuffle: bool = Field(default=True, description="Visit the samples in a seeded random order.")
    shuffle_shards: int = Field(
        default=8, ge=1, description="Samples are mixed within windows of this many shards."
    )
    same_size: int = Field(
        default=64,
        ge=0,
        description="Samples of one size that follow each other where a data set has several, so "
        "that ranks need not wait for the one with the largest: a power of two, at least the "
        "samples of one forward pass over all ranks. 0 mixes sizes freely.",
    )
    seed: int = Field(default=1234, ge=0, description="Seed of order, crops and other data draws.")
    num_workers: int = Field(
        default=2, ge=1, description="Threads that read and decode ahead, per rank."
    )
    prefetch: int = Field(default=4, ge=1, description="Batches prepared ahead, per rank.")
    cache_dir: str = Field(
        default="", description="Folder of the local shard cache; empty means below log.log_dir."
    )
    cache_gib: float = Field(
        default=50.0, gt=0, description="Bound of the shard cache on each node, in GiB."
    )

    @field_validator("same_size")
    @classmethod
    def _power_of_two(cls, value: int) -> int:
        if value & (value - 1):
            raise ValueError("same_size must be a power of two, or 0")
        return value


class DiffusionData(DataBase):
    """Group `data` of the diffusion recipes."""

    prompts: str = Field(
        default="",
        description="Manifest of the prompt embeddings; empty when the samples carry their own.",
    )


class TaskEncoder(Frozen):
    """How a clip is cut out of a video."""

    crop_height: int = Field(default=256, ge=16, description="Height of the crop in pixels.")
    crop_width: int = Field(default=0, ge=0, description="Width of the crop; 0 means crop_height.")
    temporal_crop: int = Field(default=33, ge=1, description="Frames of a clip, 8k+1.")
    resize_height: int = Field(
        default=0,
        ge=0,
        description="Resize frames to this height before cropping; 0 keeps their size.",
    )
    resize_width: int = Field(
        default=0, ge=0, description="The width that goes with resize_height."
    )
    position: Literal["random", "corner"] = Field(
        default="random",
        description="random: seeded crop position and start frame. corner: the first frames and "
        "the top-left corner, as the guide's own loader does.",
    )
    horizontal_flip: float = Field(
        default=0.0, ge=0, le=1, description="Probability of a mirrored clip."
    )
    time_reverse: float = Field(
        default=0.0, ge=0, le=1, description="Probability of a reversed clip."
    )

    @model_validator(mode="after")
    def _check(self) -> TaskEncoder:
        try:
            TOKENIZER_PRESETS["CV8x8x8"].check_frames(self.temporal_crop)
        except UserError as error:
            raise ValueError(f"temporal_crop {self.temporal_crop}: {error}") from error
        if (self.resize_height > 0) != (self.resize_width > 0):
            raise ValueError("give resize_height and resize_width together")
        return self

    @property
    def crop(self) -> tuple[int, int]:
        """(height, width) of a clip in pixels."""
        return self.crop_height, self.crop_width or self.crop_height


class TokenizerData(DataBase):
    """Group `data` of the tokenizer recipes."""

    task_encoder: TaskEncoder = Field(default=TaskEncoder(), description="How clips are cut.")
    decoded_cache_mib: int = Field(
        default=512, ge=0, description="Decoded frames kept in memory on each rank, in MiB."
    )
    validation_clips: int = Field(default=4, ge=1, description="Held-out clips of one validation.")


class StrategyConfig(Frozen):
    """How the ranks share the work. Ranks = tensor parallel x data parallel."""

    tensor_model_parallel_size: int = Field(
        default=1,
        ge=0,
        description="Ranks that share each layer; 0 chooses by model, GPUs per node and their "
        "memory.",
    )
    sequence_parallel: bool = Field(
        default=False,
        description="Also split the tokens over the tensor-parallel ranks outside attention.",
    )
    data_parallel_replicas: int = Field(
        default=1,
        ge=0,
        description="HSDP: copies of the sharded state. With one per node, only gradients cross "
        "nodes. 1 shards over all data-parallel ranks. 0 chooses: 1 for the DiT, one on each rank "
        "for the tokenizers, which are small.",
    )
    reshard_after_forward: bool = Field(
        default=True,
        description="Free gathered weights after the forward pass: less memory, more traffic.",
    )


class TrainerConfig(Frozen):
    """Group `trainer`."""

    engine: Literal["lightning", "plain"] = Field(
        default="lightning",
        description="lightning: Lightning's Trainer set up by NeMo's exp_manager. plain: the bare "
        "loop on the same core, which starts faster.",
    )
    max_steps: int = Field(default=1000, ge=1, description="Optimizer steps of the run.")
    precision: Literal["bf16-mixed", "32-true"] = Field(
        default="bf16-mixed",
        description="bf16-mixed: bf16 compute on fp32 master weights, gradients reduced in fp32.",
    )
    accelerator: Literal["auto", "cpu", "gpu"] = Field(default="auto", description="Which devices.")
    accumulate_grad_batches: int = Field(
        default=1, ge=1, description="Micro-batches whose gradients are summed before a step."
    )
    gradient_clip_val: float = Field(
        default=1.0, ge=0, description="Clip the global gradient norm to this; 0 never clips."
    )
    val_check_interval: int = Field(
        default=100, ge=0, description="Validate every this many steps (and at the end); 0 never."
    )
    limit_val_batches: int = Field(
        default=16, ge=1, description="Held-out samples of one validation, at most."
    )
    log_every_n_steps: int = Field(
        default=1, ge=1, description="Steps between two lines of metrics."
    )
    recompute: Literal["auto", "none", "light", "selective", "full"] = Field(
        default="none",
        description="Activation checkpointing of each block. full: keep a block's input only. "
        "selective: also attention outputs. light: also the results of matrix products. none: all. "
        "auto: for each block the least recomputation that the GPU's memory allows for the data "
        "set's largest clip.",
    )
    recompute_memory: float = Field(
        default=0.94,
        gt=0,
        le=1,
        description="Part of the GPU's free memory that recompute=auto plans with; less when "
        "something else needs memory there too.",
    )
    compile: bool = Field(default=False, description="Compile each block with torch.compile.")
    optimizer_state: Placement = Field(
        default="auto",
        description="Where Adam's moments and the moving average are during forward and backward "
        "pass, while activations need the GPU's memory. The optimizer's step is on the GPU and "
        "computes the same either way. auto: on the host if recompute=auto would otherwise repeat "
        "matrix products and the host has the memory.",
    )
    activations: Placement = Field(
        default="auto",
        description="Where the widest activation of compiled blocks (GELU's input, a third of what "
        "light keeps) is between forward and backward pass. It comes back unchanged. auto: on the "
        "host, for as many blocks as it takes, if recompute=auto would otherwise repeat matrix "
        "products, clips are long (tokens of 6 x hidden or more) and the host has the memory.",
    )
    compile_mode: Literal["auto", "default", "reduce-overhead"] = Field(
        default="auto",
        description="Of the tokenizers' compiled networks: reduce-overhead replays their kernels "
        "as CUDA graphs, since launching them takes longer than they do. auto: so where each GPU "
        "holds the network whole.",
    )
    attention: Literal["auto", "cudnn", "flash4", "flash", "efficient", "math"] = Field(
        default="auto",
        description="Kernel of the DiT's attention on GPUs. auto: flash4 (FlashAttention-4, bf16, "
        "on Hopper where its package is installed), else the first of cudnn, flash, efficient, "
        "math that takes the shapes.",
    )
    ema_decay: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Decay of the moving average of the weights; 0 keeps none.",
    )
    seed: int = Field(
        default=1, ge=0, description="Seed of weights, noise, sigma and text dropout."
    )
    explode_factor: float = Field(
        default=20.0,
        gt=1,
        description="Stop when the loss exceeds this many times its running mean.",
    )
    strategy: StrategyConfig = Field(default=StrategyConfig(), description="Parallel layout.")


class OptimizerConfig(Frozen):
    """AdamW on fp32 weights."""

    lr: float = Field(default=1e-6, gt=0, description="Learning rate after warm-up.")
    adam_beta1: float = Field(default=0.9, ge=0, lt=1, description="Decay of the first moment.")
    adam_beta2: float = Field(default=0.999, ge=0, lt=1, description="Decay of the second moment.")
    adam_eps: float = Field(default=1e-8, gt=0, description="Epsilon of Adam.")
    weight_decay: float = Field(
        default=0.0, ge=0, description="Decoupled weight decay (not on biases)."
    )


class LrScheduler(Frozen):
    """Learning rate over the steps."""

    name: Literal["constant", "linear", "cosine"] = Field(
        default="constant", description="Course after the warm-up, down to min_lr at max_steps."
    )
    warmup_steps: int = Field(default=0, ge=0, description="Steps of linear rise from zero.")
    min_lr: float = Field(default=0.0, ge=0, description="Learning rate at the end of a decay.")


class OptimConfig(Frozen):
    """Group `optim`."""

    config: OptimizerConfig = Field(default=OptimizerConfig(), description="AdamW.")
    lr_scheduler: LrScheduler = Field(default=LrScheduler(), description="Learning-rate schedule.")


class CheckpointConfig(Frozen):
    """When checkpoints are written and which are kept."""

    every_n_train_steps: int = Field(
        default=200, ge=0, description="Steps between checkpoints; 0: at end."
    )
    save_top_k: int = Field(
        default=2, ge=1, description="How many of the newest checkpoints are kept."
    )
    keep_best: bool = Field(
        default=True, description="Also keep the one with the lowest held-out loss."
    )
    export: Literal["last", "best"] = Field(
        default="last",
        description="Which weights become the model: those after the last step, or those of the "
        "checkpoint with the lowest held-out loss (of those that fell on a validation).",
    )
    asynchronous: bool = Field(default=True, description="Write and upload while training goes on.")


class LogConfig(Frozen):
    """Group `log`."""

    log_dir: str = Field(
        default="nemo_experiments", description="Local folder of logs, caches and unfinished files."
    )
    store_uri: str = Field(
        default="",
        description="s3://bucket/prefix/ that receives checkpoints, metrics and the final model; "
        "empty keeps them in log_dir.",
    )
    name: str = Field(
        default="default", description="Name of the run in W&B and in exp_manager's folders."
    )
    ckpt: CheckpointConfig = Field(default=CheckpointConfig(), description="Checkpoints.")
    tensorboard: bool = Field(default=True, description="Write TensorBoard events.")
    wandb_project: str = Field(
        default="cosmos-pipelines",
        description="W&B project, used when WANDB_API_KEY is set. WANDB_PROJECT and "
        "WANDB_PROJECT_NAME in the environment take precedence.",
    )


class RestoreConfig(Frozen):
    """Weights to start from."""

    path: str = Field(
        default="",
        description="Checkpoint manifest (s3://…/manifest.json) or local model folder; "
        "empty starts from random weights.",
    )


class ResumeConfig(Frozen):
    """Group `resume`."""

    resume_if_exists: bool = Field(
        default=True,
        description="Continue from the newest complete checkpoint of this run, if any.",
    )
    restore_config: RestoreConfig = Field(default=RestoreConfig(), description="Starting weights.")


class TrainConfig(Frozen):
    """What the trainings of all families share; each adds its groups `model` and `data`."""

    #: The family (`components.lib.cosmos.families`) whose networks these settings train.
    family: ClassVar[str]
    #: Whether ranks may share a layer; otherwise each process holds the network whole.
    model_parallel: ClassVar[bool] = True
    if TYPE_CHECKING:  # each family's own come after the shared groups, in files and in --help
        model: Frozen
        data: DataBase

    trainer: TrainerConfig = Field(default=TrainerConfig(), description="Loop, precision, layout.")
    optim: OptimConfig = Field(default=OptimConfig(), description="Optimizer and schedule.")
    log: LogConfig = Field(default=LogConfig(), description="Outputs.")
    resume: ResumeConfig = Field(default=ResumeConfig(), description="Where to start.")

    @property
    def start_path(self) -> str:
        """Where the starting weights are, or an empty string."""
        return self.resume.restore_config.path

    def network_preset(self) -> str:
        """Name of the network's preset, from which the layout is planned; empty: not planned."""
        return ""

    def memory_advice(self) -> list[str]:
        """What to set when a GPU's memory has run out, the cheapest first."""
        size = self.data.micro_batch_size
        return [f"data.micro_batch_size=1 (now {size})"] if size > 1 else []


class DiffusionTrainingConfig(TrainConfig):
    """A diffusion post-training."""

    family: ClassVar[str] = "dit"

    task: Literal["diffusion"] = Field(default="diffusion", description="Which training this is.")
    model: DiffusionModel = Field(default=DiffusionModel(), description="Network and its loss.")
    data: DiffusionData = Field(default=DiffusionData(), description="Data set.")

    def network_preset(self) -> str:
        """As `model.preset` says."""
        return self.model.preset

    def memory_advice(self) -> list[str]:
        """Smaller batches, then recomputation, the host, low rank, more GPUs."""
        trainer, advice = self.trainer, super().memory_advice()
        if trainer.recompute == "auto":
            advice.append(f"trainer.recompute_memory below {trainer.recompute_memory:g}")
        if trainer.recompute != "full":
            advice.append(f"trainer.recompute=full (now {trainer.recompute})")
        if trainer.optimizer_state != "host":
            advice.append(f"trainer.optimizer_state=host (now {trainer.optimizer_state})")
        if not self.model.lora.rank:
            advice.append("model.lora.rank=16, which trains far fewer weights")
        tp = trainer.strategy.tensor_model_parallel_size
        return [
            *advice,
            f"trainer.strategy.tensor_model_parallel_size above {tp} on more GPUs",
        ]


class TokenizerTrainingConfig(TrainConfig):
    """A tokenizer post-training."""

    family: ClassVar[str] = "tokenizer"
    model_parallel: ClassVar[bool] = False

    task: Literal["tokenizer"] = Field(default="tokenizer", description="Which training this is.")
    model: TokenizerModel = Field(default=TokenizerModel(), description="Network and its loss.")
    data: TokenizerData = Field(default=TokenizerData(), description="Data set.")

    @property
    def start_path(self) -> str:
        """The guide's name for it, or the common one."""
        return self.model.jit_ckpt_pth or super().start_path

    def memory_advice(self) -> list[str]:
        """Smaller batches, then smaller clips."""
        clip = self.data.task_encoder
        return [
            *super().memory_advice(),
            f"data.task_encoder.crop_height below {clip.crop_height}",
            f"data.task_encoder.temporal_crop below {clip.temporal_crop}",
        ]
