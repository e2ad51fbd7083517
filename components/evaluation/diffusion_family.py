"""Diffusion models in the evaluation: held-out loss, one-step denoising, sampled videos."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from markupsafe import Markup

from components.evaluation import content, diffusion
from components.evaluation.family import COLUMNS, COMPARED, SHORT, Setting
from components.evaluation.held_out import HeldOut, LatentClip, latent_clips
from components.lib.cosmos.inference import speed_up_tokenizer
from components.lib.cosmos.model_folder import download_model, load_dit, load_tokenizer
from components.lib.manifest import load_manifest
from components.lib.report import page, pictures
from components.lib.report.page import Picture
from components.lib.report.quality import gaussian_frechet
from components.lib.report.scores import HELD_OUT, Better, ClipScore, Evaluation, ModelRole
from components.lib.shards.prompts import PromptSource
from components.lib.video.encode import write_mp4

PREVIEW_LATENTS = 2


class DiffusionFamily(Setting):
    """Held-out loss on fixed noise; pictures of one denoising step where a tokenizer is known."""

    name = "dit"
    metric = "loss"
    better: Better = "lower"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        prompts = self.inputs.get("prompts")
        self.prompts = PromptSource(prompts, None, self.store) if prompts else None
        self.grid = diffusion.noise_grid(
            self.config.sigmas, self.config.noise_draws, self.config.seed
        )
        self.shown: dict[str, dict[str, Any]] = {}
        self.sampled: dict[str, dict[str, Any]] = {}
        self.real: list[Any] = []
        self.tokenizer: Any | None = None
        self.films: dict[tuple[str, str], Any] = {}
        self.own_text = False

    def measure(
        self, role: ModelRole, folder: Path, sets: Mapping[str, HeldOut]
    ) -> dict[str, list[ClipScore]]:
        """See `Family`."""
        # Not compiled: an unchanged model must score exactly the same, and with clips of several
        # sizes the compiler may take another graph, which rounds otherwise, the second time.
        model = load_dit(folder, device=self.device, dtype=self.dtype)
        found = {}
        for name, held in sets.items():
            self.own_text |= bool(held.guide)
            clips = latent_clips(held, self.store, self.scratch, self.config.max_clips)
            found[name] = diffusion.measure(
                model, clips, self.prompts, self.grid, self.device, self.progress,
                min(held.samples, self.config.max_clips), f"loss of {role} on {name} clips",
            )  # fmt: skip
        if self.config.shown:
            self._show(role, model, sets[HELD_OUT])
        if self.config.samples and not model.config.condition_mask:
            self._sample(role, model, sets[HELD_OUT])
        return found

    def _sample(self, role: ModelRole, model: Any, held: HeldOut) -> None:
        """Latents from noise for the first distinct prompts; every model has the same seeds."""
        clips: dict[str, LatentClip] = {}
        patches = []
        for clip in latent_clips(held, self.store, self.scratch, self.config.max_clips):
            if len(clips) < self.config.samples:
                clips.setdefault(clip.info.prompt_sha256 or "", clip)
            patches.append(diffusion.patch_vectors(clip.latent))
        self.real = patches
        what = f"sampling videos from {role}"
        with self.progress.task(what, len(clips), "videos") as task:
            for number, clip in enumerate(clips.values()):
                latent = diffusion.sampled(
                    model, clip, self.prompts, self.config.sample_steps, self.config.guidance,
                    self.config.seed + number, self.device,
                )  # fmt: skip
                name = clip.info.prompt or "no prompt"
                self.sampled.setdefault(name, {"clip": clip})[role] = latent
                task.advance()

    def _show(self, role: ModelRole, model: Any, held: HeldOut) -> None:
        for clip in latent_clips(held, self.store, self.scratch, self.config.shown):
            noised, guess = diffusion.denoised(
                model, clip, self.prompts, self.config.seed, self.device
            )
            rows = self.shown.setdefault(clip.key, {"clip": clip, "original": clip.latent})
            rows |= {"noised": noised, role: guess}

    def strips(self) -> list[tuple[str, Picture]]:
        """Original, noised, and each model's guess; then what each model makes of a prompt."""
        self.tokenizer = self._tokenizer()
        how = "decoded" if self.tokenizer is not None else "three latent channels as colours"
        found = []
        for number, rows in enumerate(self.shown.values()):
            clip: LatentClip = rows["clip"]
            order = ["original", "noised", "base", "production", "candidate"]
            frames = {
                SHORT.get(row, row): self._frames(rows[row], clip) for row in order if row in rows
            }
            caption = (
                f"{clip.info.video.rsplit('/', 1)[-1]}, frames {clip.info.start_frame} to "
                f"{clip.info.start_frame + clip.info.num_frames - 1}: one denoising step from "
                f"σ = {diffusion.SHOWN_SIGMA:g} ({how})"
            )
            picture = Picture(caption=caption, data=pictures.strip(frames), media="image/jpeg")
            found.append((f"pictures/denoised-{number:02d}.jpg", picture))
        for number, (prompt, rows) in enumerate(self.sampled.items()):
            frames = {SHORT[role]: self._film(prompt, role, rows) for role in SHORT if role in rows}
            caption = (
                f"“{prompt}”: made from noise, seed {self.config.seed + number}, "
                f"{self.config.sample_steps} steps ({how})"
            )
            picture = Picture(caption=caption, data=pictures.strip(frames), media="image/jpeg")
            found.append((f"pictures/sample-{number:02d}.jpg", picture))
        return found

    def _frames(self, latent: Any, clip: LatentClip) -> list[Any]:
        if self.tokenizer is None:
            return pictures.latent_frames(latent, clip.latent, COLUMNS)
        # The decoder is causal: the first latents show the first frames, at a part of the cost.
        frames = self._decoded(latent[:, :PREVIEW_LATENTS])
        return [frames[i] for i in pictures.pick(len(frames), COLUMNS)]

    def _film(self, prompt: str, role: str, rows: Mapping[str, Any]) -> list[Any]:
        """Frames of a made video for its strip; the whole film is kept for the MP4."""
        if self.tokenizer is None:
            return pictures.latent_frames(rows[role], rows["clip"].latent, COLUMNS)
        film = self.films[prompt, role] = self._decoded(rows[role])
        return [film[i] for i in pictures.pick(len(film), COLUMNS)]

    def _decoded(self, latent: Any) -> Any:
        assert self.tokenizer is not None, "callers look first"
        with torch.inference_mode():
            video = self.tokenizer.decode(self.tokenizer.denormalise(latent[None].to(self.device)))
        return pictures.to_frames(video[0])

    def _tokenizer(self) -> Any | None:
        """The tokenizer that made the latents, when its manifest is still there."""
        ref = self.inputs["data"].inputs.get("checkpoint")
        if ref is None or self.store.stat(ref.uri) is None:
            return None
        manifest = load_manifest(ref.uri, self.store)
        folder = download_model(manifest, self.store, self.scratch / "tokenizer")
        tokenizer = load_tokenizer(folder, device=self.device, dtype=self.dtype)
        speed_up_tokenizer(tokenizer)
        return tokenizer

    def videos(self) -> list[tuple[str, Picture]]:
        """What each model makes of a prompt, side by side, where a tokenizer can decode it."""
        if self.tokenizer is None:
            return []
        found = []
        for number, (prompt, rows) in enumerate(self.sampled.items()):
            roles = [role for role in SHORT if role in rows]
            frames = pictures.beside([self.films[prompt, role] for role in roles])
            path = self.scratch / "beside.mp4"
            write_mp4(path, frames, rows["clip"].info.fps, crf=23)
            names = ", ".join(SHORT[role].replace("\n", " ") for role in roles)
            picture = Picture(
                caption=f"“{prompt}”: {names}", data=path.read_bytes(), media="video/mp4"
            )
            found.append((f"pictures/sample-{number:02d}.mp4", picture))
        return found

    def scalars(self) -> dict[str, float]:
        """Frechet distance of latent patches, made against real, of base and candidate."""
        found = {}
        for role in COMPARED:
            made = [diffusion.patch_vectors(r[role]) for r in self.sampled.values() if role in r]
            if made:
                distance = gaussian_frechet(torch.cat(self.real), torch.cat(made))
                found[f"{role}_latent_patch_frechet"] = distance
        return found

    def sections(self, evaluation: Evaluation) -> list[Markup]:
        """Loss by noise level."""
        return [page.section("Per noise level", content.sigma_plot(evaluation))]

    def rates(self) -> dict[str, float]:
        """Nothing beyond the stage's own time."""
        return {}

    def facts(self) -> dict[str, Any]:
        """The grid, and the Frechet distances."""
        found: dict[str, Any] = {
            "noise levels": ", ".join(f"{sigma:.3g}" for sigma in self.grid.sigmas),
            "noises per clip and level": self.grid.draws,
            "text": self._text(),
        }
        for name, value in self.scalars().items():
            role = SHORT[name.split("_", 1)[0]]
            found[f"Frechet distance of latent patches, {role} (not FVD)"] = value
        return found

    def _text(self) -> str:
        if self.prompts:
            return "prompt embeddings"
        return "stored beside each clip" if self.own_text else "none (zero embedding)"


EVALUATION = DiffusionFamily
