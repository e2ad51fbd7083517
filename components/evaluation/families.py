"""The two families of models behind one interface: measure, show, and say how they went."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from components.evaluation import diffusion, tokenizer
from components.evaluation.held_out import HeldOut, LatentClip, latent_clips, video_clips
from components.lib.contract import Progress, UserError
from components.lib.cosmos.model_folder import download_model, load_dit, load_tokenizer
from components.lib.manifest import Manifest, load_manifest
from components.lib.report import pictures, quality
from components.lib.report.page import Picture
from components.lib.report.scores import HELD_OUT, Better, ClipScore, Role
from components.lib.store import ObjectStore
from components.lib.train.prompts import PromptSource
from components.lib.video.encode import write_mp4

if TYPE_CHECKING:
    from components.evaluation.stage import EvaluationConfig

COLUMNS = 5
COMPARED: tuple[Role, ...] = ("base", "candidate")
SHORT: dict[str, str] = {"base": "before", "candidate": "after", "production": "in\nproduction"}


class Family(Protocol):
    """What the stage needs of a family. ``measure`` is called once per model."""

    name: Literal["dit", "tokenizer"]
    metric: str
    better: Better

    def measure(
        self, role: Role, folder: Path, sets: Mapping[str, HeldOut]
    ) -> dict[str, list[ClipScore]]:
        """Scores by set of the model in ``folder``."""

    def strips(self) -> list[tuple[str, Picture]]:
        """File name and picture, of what the models made."""

    def videos(self) -> list[tuple[str, Picture]]:
        """File name and MP4."""

    def scalars(self) -> dict[str, float]:
        """Further numbers for the UI, the same on every run."""

    def rates(self) -> dict[str, float]:
        """Speeds, different on every run."""

    def facts(self) -> dict[str, Any]:
        """What else the report should say of the models."""


def open_family(
    config: EvaluationConfig,
    inputs: Mapping[str, Manifest],
    store: ObjectStore,
    progress: Progress,
    scratch: Path,
) -> Family:
    """The family that fits the data set. Raises UserError for other kinds of manifests."""
    import torch

    auto = "cuda" if torch.cuda.is_available() else "cpu"
    device = auto if config.device == "auto" else config.device
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    kinds: dict[str, type[DiffusionFamily] | type[TokenizerFamily]] = {
        "latent-dataset": DiffusionFamily,
        "tokenizer-dataset": TokenizerFamily,
    }
    kind = inputs["data"].kind
    if kind not in kinds:
        raise UserError(
            f"data is a '{kind}' manifest ({inputs['data'].uri}); evaluation needs the data set "
            "that the model was trained on."
        )
    return kinds[kind](config, inputs, store, progress, scratch, device, dtype)


class _Base:
    def __init__(
        self,
        config: EvaluationConfig,
        inputs: Mapping[str, Manifest],
        store: ObjectStore,
        progress: Progress,
        scratch: Path,
        device: str,
        dtype: Any,
    ) -> None:
        self.config, self.inputs, self.store, self.progress = config, inputs, store, progress
        self.scratch, self.device, self.dtype = scratch, device, dtype


class DiffusionFamily(_Base):
    """Held-out loss on fixed noise; pictures of one denoising step where a tokenizer is known."""

    name: Literal["dit", "tokenizer"] = "dit"
    metric = "loss"
    better: Better = "lower"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        prompts = self.inputs.get("prompts")
        self.prompts = PromptSource(prompts, None, self.store) if prompts else None
        self.grid = diffusion.sigma_grid(
            self.config.sigmas, self.config.noise_draws, self.config.seed
        )
        self.shown: dict[str, dict[str, Any]] = {}

    def measure(
        self, role: Role, folder: Path, sets: Mapping[str, HeldOut]
    ) -> dict[str, list[ClipScore]]:
        """See `Family`."""
        model = load_dit(folder, device=self.device, dtype=self.dtype)
        found = {}
        for name, held in sets.items():
            clips = latent_clips(held, self.store, self.scratch, self.config.max_clips)
            found[name] = diffusion.measure(
                model, clips, self.prompts, self.grid, self.device, self.progress,
                min(held.samples, self.config.max_clips), f"loss of {role} on {name} clips",
            )  # fmt: skip
        if self.config.shown:
            self._show(role, model, sets[HELD_OUT])
        return found

    def _show(self, role: Role, model: Any, held: HeldOut) -> None:
        for clip in latent_clips(held, self.store, self.scratch, self.config.shown):
            noised, guess = diffusion.denoised(
                model, clip, self.prompts, self.config.seed, self.device
            )
            rows = self.shown.setdefault(clip.key, {"clip": clip, "original": clip.latent})
            rows |= {"noised": noised, role: guess}

    def strips(self) -> list[tuple[str, Picture]]:
        """Original, noised, and each model's guess, decoded; latents as colours otherwise."""
        tokenizer_model = self._tokenizer()
        found = []
        for number, rows in enumerate(self.shown.values()):
            clip: LatentClip = rows["clip"]
            order = ["original", "noised", "base", "production", "candidate"]
            present = [row for row in order if row in rows]
            frames = {
                SHORT.get(row, row): self._frames(rows[row], rows["original"], tokenizer_model)
                for row in present
            }
            how = "decoded" if tokenizer_model is not None else "three latent channels as colours"
            caption = (
                f"{clip.info.video.rsplit('/', 1)[-1]}, frames {clip.info.start_frame} to "
                f"{clip.info.start_frame + clip.info.num_frames - 1}: one denoising step from "
                f"σ = {diffusion.SHOWN_SIGMA:g} ({how})"
            )
            picture = Picture(caption=caption, data=pictures.strip(frames), media="image/jpeg")
            found.append((f"pictures/denoised-{number:02d}.jpg", picture))
        return found

    def _frames(self, latent: Any, reference: Any, tokenizer_model: Any | None) -> list[Any]:
        import torch

        if tokenizer_model is None:
            return pictures.latent_frames(latent, reference, COLUMNS)
        with torch.inference_mode():
            video = tokenizer_model.decode(
                tokenizer_model.denormalise(latent[None]).to(self.device)
            )
        frames = pictures.to_frames(video[0])
        return [frames[i] for i in pictures.pick(len(frames), COLUMNS)]

    def _tokenizer(self) -> Any | None:
        """The tokenizer that made the latents, when its manifest is still there."""
        ref = self.inputs["data"].inputs.get("checkpoint")
        if ref is None or self.store.stat(ref.uri) is None:
            return None
        manifest = load_manifest(ref.uri, self.store)
        folder = download_model(manifest, self.store, self.scratch / "tokenizer")
        return load_tokenizer(folder, device=self.device, dtype=self.dtype)

    def videos(self) -> list[tuple[str, Picture]]:
        """None yet: one denoising step gives no video worth watching."""
        return []

    def scalars(self) -> dict[str, float]:
        """Nothing beyond the scores."""
        return {}

    def rates(self) -> dict[str, float]:
        """Nothing beyond the stage's own time."""
        return {}

    def facts(self) -> dict[str, Any]:
        """The grid."""
        return {
            "noise levels": ", ".join(f"{sigma:.3g}" for sigma in self.grid.sigmas),
            "noises per clip and level": self.grid.draws,
            "text": "prompt embeddings" if self.prompts else "none (zero embedding)",
        }


class TokenizerFamily(_Base):
    """Reconstruction quality on one clip of every held-out video."""

    name: Literal["dit", "tokenizer"] = "tokenizer"
    metric = "psnr"
    better: Better = "higher"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.measured: dict[Role, tokenizer.Measured] = {}
        self.compression = 0.0

    def measure(
        self, role: Role, folder: Path, sets: Mapping[str, HeldOut]
    ) -> dict[str, list[ClipScore]]:
        """See `Family`."""
        model = load_tokenizer(folder, device=self.device, dtype=self.dtype)
        found = {}
        for name, held in sets.items():
            clips = video_clips(held, self.store, self.scratch, self.config.max_clips)
            measured = tokenizer.measure(
                model, clips, frames=self.config.frames, crop=self.config.crop,
                shown=self.config.shown if name == HELD_OUT else 0, vgg=None,
                device=self.device, progress=self.progress,
                total=min(held.samples, self.config.max_clips),
                what=f"reconstruction by {role} on {name} video",
            )  # fmt: skip
            found[name] = measured.scores
            if name == HELD_OUT:
                self.measured[role] = measured
        for original, _ in self.measured[role].shown.values():
            self.compression = tokenizer.compression(model.config, *original.shape[:3])
        return found

    def strips(self) -> list[tuple[str, Picture]]:
        """Original, each model's reconstruction, and where it is wrong."""
        found = []
        for number, (key, clips) in enumerate(self._clips().items()):
            rows = {}
            original = clips.pop("original")
            at = pictures.pick(len(original), COLUMNS)
            rows["original"] = [original[i] for i in at]
            for role, clip in clips.items():
                rows[SHORT[role]] = [clip[i] for i in at]
                rows[f"{SHORT[role]},\nerror ×4"] = [
                    pictures.difference_map(original[i], clip[i]) for i in at
                ]
            picture = Picture(
                caption=f"{key}: original, reconstructions, and their absolute error times four",
                data=pictures.strip(rows),
                media="image/jpeg",
            )
            found.append((f"pictures/reconstruction-{number:02d}.jpg", picture))
        return found

    def _clips(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        roles: tuple[Role, ...] = ("base", "production", "candidate")
        for role in roles:
            for key, (original, made) in self._shown(role).items():
                found.setdefault(key, {"original": original})[role] = made
        return found

    def _shown(self, role: Role) -> dict[str, tuple[Any, Any]]:
        return self.measured[role].shown if role in self.measured else {}

    def videos(self) -> list[tuple[str, Picture]]:
        """Original and reconstructions side by side."""
        found = []
        for number, (key, clips) in enumerate(self._clips().items()):
            names = ", ".join(SHORT.get(name, name).replace("\n", " ") for name in clips)
            frames = pictures.beside(list(clips.values()))
            path = self.scratch / "beside.mp4"
            write_mp4(path, frames, 12, crf=23)
            picture = Picture(
                caption=f"{key}: {names}", data=path.read_bytes(), media="video/mp4"
            )
            found.append((f"pictures/reconstruction-{number:02d}.mp4", picture))
        return found

    def scalars(self) -> dict[str, float]:
        """Code use of the candidate, compression ratio."""
        values = {"compression_ratio": self.compression} if self.compression else {}
        for role in COMPARED:
            use = self._codes(role)
            if use is not None:
                values |= {
                    f"{role}_code_usage": use.usage,
                    f"{role}_code_entropy_bits": use.entropy,
                    f"{role}_code_perplexity": use.perplexity,
                }
        return values

    def _codes(self, role: Role) -> quality.CodeUse | None:
        return self.measured[role].codes if role in self.measured else None

    def rates(self) -> dict[str, float]:
        """Frames per second of the candidate."""
        measured = self.measured.get("candidate")
        if measured is None:
            return {}
        return {
            "encode_frames_per_second": measured.frames / max(measured.encode_seconds, 1e-9),
            "decode_frames_per_second": measured.frames / max(measured.decode_seconds, 1e-9),
        }

    def facts(self) -> dict[str, Any]:
        """Compression, code use, speed."""
        found: dict[str, Any] = {}
        if self.compression:
            found["compression (bits of 8-bit RGB over bits of the latent)"] = self.compression
        for role in COMPARED:
            use = self._codes(role)
            if use is not None:
                found[f"codes used, {SHORT[role]}"] = (
                    f"{use.used:,} of {use.codes:,} ({100 * use.usage:.1f} %) at {use.positions:,} "
                    f"positions; entropy {use.entropy:.2f} bits, perplexity {use.perplexity:,.0f}"
                )
        for name, rate in self.rates().items():
            found[name.replace("_", " ")] = f"{rate:.1f} on {self.device}"
        return found
