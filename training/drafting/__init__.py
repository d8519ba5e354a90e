"""Draft a surface: propose its TOML from nothing but a log.

It imports `fit`, `evaluation`, `examination`, `data`, `network`, `world`, `terminal` and `serve`.
"""
