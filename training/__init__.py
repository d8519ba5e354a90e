"""Train ranking models from a log and publish them as artifacts.

Each may import those after it in this list, and `serve`, but never `loadtest`: `__main__`; `bench`
and `experiment`, which do not import each other; `audit`, `search`, `drafting`, `fit`,
`evaluation`, `data`, `network`, `world`, `terminal`.
"""
