"""The stage export: backbones for use without this project."""
