"""Train ranking models from a log and publish them as artifacts.

The packages form layers. From top to bottom they are `__main__`, `bench` beside `experiment`,
`audit`, `search`, `drafting`, `fit`, `evaluation`, `data`, `network`, `world` and `terminal`. Each
layer may import the layers below it and `serve`, but never `loadtest`. `bench` and `experiment` do
not import each other.
"""
