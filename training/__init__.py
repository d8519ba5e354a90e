"""Train ranking models from a log and publish them as artifacts.

The packages form layers. From top to bottom they are `__main__`, `bench` beside `experiment`,
`audit` beside `erasure`, `search`, `drafting`, `fit`, `evaluation`, `examination`, `data`,
`network`, `world` and `terminal`. Each layer may import the layers below it and `serve`, but never
`loadtest`. Packages beside each other do not import each other.
"""
