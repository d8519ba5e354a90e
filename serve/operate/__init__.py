"""Operator's tools: start, inspect, change, plan and deploy a service; one sub-package per tool.

Imports `runtime` and the layers below it. `pyproject.toml` states which tool may import another.
"""
