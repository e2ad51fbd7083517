"""Which readable videos the user does not want, and the reason in words."""

from __future__ import annotations

from components.lib.video.inspection import Look
from components.lib.video.probe import VideoProbe
from components.video_discovery.config import VideoDiscoveryConfig


def looks_at_pictures(config: VideoDiscoveryConfig) -> bool:
    """Whether a filter needs decoded pictures."""
    return bool(config.max_black or config.max_still or config.max_near_duplicates)


def rejection(config: VideoDiscoveryConfig, probe: VideoProbe, look: Look | None) -> str:
    """Why this video is left out, empty when it is wanted."""
    if probe.frames < config.min_frames:
        return f"it has {probe.frames} frames, fewer than min_frames={config.min_frames}"
    if probe.width < config.min_width or probe.height < config.min_height:
        wanted = f"{config.min_width} x {config.min_height}"
        return f"it is {probe.width} x {probe.height} pixels, smaller than {wanted}"
    if probe.duration < config.min_duration:
        return f"it lasts {probe.duration:.2f} s, less than min_duration={config.min_duration:g}"
    return _picture_rejection(config, look) if look is not None else ""


def _picture_rejection(config: VideoDiscoveryConfig, look: Look) -> str:
    if config.max_black and look.brightest <= config.max_black:
        return f"it is black (brightest sampled frame {look.brightest:g} of 255)"
    if config.max_still and look.change < config.max_still:
        return f"it is a still picture (sampled frames differ by {look.change:g} of 255)"
    if config.max_near_duplicates and look.near_duplicates > config.max_near_duplicates:
        return f"{look.near_duplicates:.0%} of its sampled frames repeat the one before"
    return ""
