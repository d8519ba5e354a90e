"""Train ranking models from a log and publish them as artifacts.

The packages form layers. From top to bottom they are `__main__`; `bench` and `experiment`, which do
not import each other; `audit`; `search`; `drafting`; `fit`; `evaluation`; `data`; `network`;
`world`; `terminal`. Each layer may import the layers below it and `serve`, but never `loadtest`.
"""
