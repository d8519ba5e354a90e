"""The canonical log on disk: journal, segments, snapshots, replay. Imports `stores` and below."""
