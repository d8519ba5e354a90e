"""Drafts of surfaces: propose a surface's TOML from a log alone.

Imports `fit`, `evaluation`, `examination`, `data`, `network`, `world`, `terminal` and `serve`.
"""
