"""Tokenizers in the evaluation: reconstruction quality, strips with error maps, videos."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from components.evaluation import tokenizer
from components.evaluation.family import COLUMNS, COMPARED, SHORT, Setting
from components.evaluation.held_out import HeldOut, video_clips
from components.lib.contract import UserError
from components.lib.cosmos.inference import speed_up_tokenizer
from components.lib.cosmos.model_folder import download_model, load_tokenizer
from components.lib.manifest import Manifest, load_manifest
from components.lib.report import pictures, quality
from components.lib.report.page import Picture
from components.lib.report.scores import HELD_OUT, Better, ClipScore, Evaluation, ModelRole
from components.lib.video.encode import write_mp4


class TokenizerFamily(Setting):
    """Reconstruction quality on one clip of every held-out video."""

    name = "tokenizer"
    metric = "psnr"
    better: Better = "higher"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.measured: dict[ModelRole, tokenizer.Measured] = {}
        self.compression = 0.0
        self.vgg, self.vgg_missing = self._load_vgg()

    def _load_vgg(self) -> tuple[Any | None, str]:
        """The perceptual distance, or why there is none. Weights that were named must load."""
        named = self.inputs.get("vgg")
        if named is not None:
            return self._distance(named), ""
        ref = self.inputs["training"].inputs.get("vgg")
        if ref is None or self.store.stat(ref.uri) is None:
            return None, "no VGG16 weights given"
        try:
            return self._distance(load_manifest(ref.uri, self.store)), ""
        except UserError as error:
            return None, str(error).split(",")[0]

    def _distance(self, manifest: Manifest) -> tokenizer.FeatureDistance:
        folder = download_model(manifest, self.store, self.scratch / "vgg")
        return tokenizer.FeatureDistance(folder, self.device)

    def measure(
        self, role: ModelRole, folder: Path, sets: Mapping[str, HeldOut]
    ) -> dict[str, list[ClipScore]]:
        """See `Family`."""
        model = load_tokenizer(folder, device=self.device, dtype=self.dtype)
        speed_up_tokenizer(model)
        found = {}
        for name, held in sets.items():
            clips = video_clips(held, self.store, self.scratch, self.config.max_clips)
            measured = tokenizer.measure(
                model, clips, frames=self.config.frames, crop=self.config.crop,
                shown=self.config.shown if name == HELD_OUT else 0, vgg=self.vgg,
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
        roles: tuple[ModelRole, ...] = ("base", "production", "candidate")
        for role in roles:
            for key, (original, made) in self._shown(role).items():
                found.setdefault(key, {"original": original})[role] = made
        return found

    def _shown(self, role: ModelRole) -> dict[str, tuple[Any, Any]]:
        return self.measured[role].shown if role in self.measured else {}

    def videos(self) -> list[tuple[str, Picture]]:
        """Original and reconstructions side by side."""
        found = []
        for number, (key, clips) in enumerate(self._clips().items()):
            names = ", ".join(SHORT.get(name, name).replace("\n", " ") for name in clips)
            frames = pictures.beside(list(clips.values()))
            path = self.scratch / "beside.mp4"
            write_mp4(path, frames, 12, crf=23)
            picture = Picture(caption=f"{key}: {names}", data=path.read_bytes(), media="video/mp4")
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

    def _codes(self, role: ModelRole) -> quality.CodeUse | None:
        return self.measured[role].codes if role in self.measured else None

    def sections(self, evaluation: Evaluation) -> list[Markup]:
        """None."""
        return []

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
        if self.vgg_missing:
            found["VGG16 feature distance"] = f"not measured: {self.vgg_missing}"
        for name, rate in self.rates().items():
            found[name.replace("_", " ")] = f"{rate:.1f} on {self.device}"
        return found


EVALUATION = TokenizerFamily
