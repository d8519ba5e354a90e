"""Train ranking models from a log and publish them as artifacts.

Each folder may import those after it in this list, and `serve`, but never `loadtest`: `bench` and
`experiment`, `audit`, `search`, `drafting`, `fit`, `evaluation`, `data`, `network`, `world`,
`terminal`.
"""
